#!/bin/sh
# The first process of a lab host: builds the host's own file system and network, then keeps sshd
# running. It starts inside fresh mount, network, PID, UTS and IPC namespaces, with a socket to
# the supervisor on fd 0 and the host's folder (made by seed.py) as its argument.
#
# The root is an overlay of this machine's root with a tmpfs above it: what a test installs or
# breaks is gone with the host. Whatever must not be seen is a whiteout in the upper layer.
set -eu
dir=$1
. "$dir/settings" # name address mac disk readonly_home fuse

# /proc is still the machine's, so this is the pid by which the supervisor knows us.
read -r pid _ </proc/self/stat
echo "$pid" >&0
read -r _ # the supervisor has plugged in eth0
exec </dev/null

mem=$dir/mem
root=$mem/root
mount -t tmpfs -o mode=755 lab "$mem"
mkdir "$mem/upper" "$mem/work" "$mem/root" "$mem/disk"
cp -a "$dir/seed/." "$mem/upper/"
while read -r path; do
    mkdir -p "$mem/upper${path%/*}"
    mknod "$mem/upper$path" c 0 0 # how overlayfs spells "deleted"
done <"$dir/hidden"
mount -t overlay -o "lowerdir=/,upperdir=$mem/upper,workdir=$mem/work" lab "$root"

# One disk for everything a user can write, so that it can be filled.
mount -t tmpfs -o "size=$disk,mode=755" disk "$mem/disk"
cp -a "$dir/disk/." "$mem/disk/"
for place in root home tmp var/tmp; do
    mkdir -p "$root/$place"
    mount --bind "$mem/disk/$place" "$root/$place"
done
mount -t tmpfs -o mode=755 opt "$root/opt"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir -p "$root/opt/bin" "$root/run/sshd"

# An installation is lent read-only, and without the packages that were added to it.
while read -r minor base; do
    home=$root/opt/python/$minor
    mkdir -p "$home"
    mount -o bind,ro "$base" "$home"
    for site in "lib/python$minor/site-packages" lib/python3/dist-packages \
        "local/lib/python$minor/dist-packages"; do
        [ -d "$home/$site" ] || continue
        mount -t tmpfs -o mode=755 site "$home/$site"
        for pip in "$base/$site"/pip "$base/$site"/pip-*; do
            [ -d "$pip" ] || continue
            mkdir "$home/$site/${pip##*/}"
            mount -o bind,ro "$pip" "$home/$site/${pip##*/}"
        done
    done
    # A shared libpython is sought where it was installed, which is not here, then in the system's
    # folders, where another build of the same version may lie.
    for library in "$base"/lib/libpython"$minor".so.*; do
        [ -f "$library" ] || continue
        for system in "$root"/usr/lib/*-linux-gnu; do
            ln -sf "/opt/python/$minor/lib/${library##*/}" "$system/${library##*/}"
        done
    done
done <"$dir/pythons"

while IFS='	' read -r inside outside; do
    mkdir -p "$root${inside%/*}"
    if [ -d "$outside" ]; then mkdir -p "$root$inside"; else touch "$root$inside"; fi
    mount -o bind,ro "$outside" "$root$inside"
done <"$dir/files"
if [ "$readonly_home" = yes ]; then
    mount -o remount,bind,ro "$root/root"
    mount -o remount,bind,ro "$root/home"
fi

mount -t tmpfs -o mode=755 dev "$root/dev"
while read -r node major minor; do
    mknod -m 666 "$root/dev/$node" c "$major" "$minor"
done <<NODES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
NODES
if [ "$fuse" = yes ]; then mknod -m 666 "$root/dev/fuse" c 10 229; fi
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sys "$root/sys"

echo "$name" >/proc/sys/kernel/hostname
ip -batch - <<WIRES
link set lo up
link set eth0 addrgenmode none
link set eth0 address $mac
addr add $address/24 dev eth0
link set eth0 up
WIRES

cd "$root"
mkdir .old
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
# Waiting for sshd in the foreground also reaps the orphans that a first process inherits.
while :; do
    /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config || sleep 1
done
