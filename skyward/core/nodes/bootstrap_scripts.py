"""The scripts that `bootstrap` runs on a machine, in POSIX sh: for dash, bash, busybox and the like.

Variables that a script uses but does not set are set by the caller in front of it.
"""

from __future__ import annotations

import shlex

from skyward.core.system.launch import RUN

__all__ = [
    "BUILD",
    "DISKS",
    "INSPECT",
    "INSTALLING",
    "LACKS",
    "NEEDS_PIP",
    "NOEXEC",
    "NO_PYTHON",
    "OFFLINE",
    "PRELUDE",
    "PYTHON",
    "QUICK_START",
    "START",
    "SUPPLY",
    "after",
]

INSTALLING = "@installing"  # a line of output; what fails after it is mostly due to the packages
NOEXEC = 71
NO_PYTHON = 72
NEEDS_PIP = 73
LACKS = 75  # a program is missing with which a requirement is fetched
PRELUDE = 74
OFFLINE = 76  # no package index can be reached


def after(prelude: str, script: str) -> str:
    """Return a script that runs in the environment of a login shell that has run `prelude`.

    The shell is bash if there is one, since what a prelude needs (``module``) is mostly defined for bash. The script
    sees neither what profiles print nor what they read. It is passed in the environment, as others could see an
    argument.
    """
    body = f"{{ {prelude}\n}} || exit {PRELUDE}\nexec /bin/sh -c 'eval \"$SKYWARD_SCRIPT\"' <&4 4<&- >&3 3>&-"
    return (
        f"SKYWARD_SCRIPT={shlex.quote(f'unset SKYWARD_SCRIPT{chr(10)}{script}')}; export SKYWARD_SCRIPT\n"
        "shell=$(command -v bash) || shell=/bin/sh\n"
        f'exec "$shell" -l -c {shlex.quote(body)} 4<&0 </dev/null 3>&1 >&2'
    )


# Prints a line for each place that a step writes to, while the disk is as full as it was when the step failed.
DISKS = r"""
disks() {
    for d in "$root" "${TMPDIR:-/tmp}"; do
        p=$d
        while [ -n "$p" ] && [ ! -e "$p" ]; do p=${p%/*}; done
        k=$(df -Pk "${p:-/}" 2>/dev/null | tail -n 1) i=$(df -Pi "${p:-/}" 2>/dev/null | tail -n 1)
        (set -- $k; mount=$6 free=$4; set -- $i; printf '@disk %s|%s|%s|%s\n' "$d" "$mount" "$free" "$4")
    done
}
"""

# Finds out in one round trip everything that later steps need to know. Interpreters are only searched for and not run:
# that takes time, and nobody needs them if the environment already exists.
INSPECT = (
    DISKS
    + r"""
LC_ALL=C; export LC_ALL
umask 077
report() { printf '%s %s\n' "$1" "$2"; }
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
root=$cache/skyward
machine=$(uname -m)
report root "$root"
report system "$(uname -s) $machine"
report glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
mkdir -p "$root/envs" "$root/code" "$root/run" "$root/tools" "$root/pythons" &&
    : >"$root/.write.$$" && rm -f "$root/.write.$$" || { disks; exit 1; }

uv=$(command -v uv)
case $uv in /*) ;; *) uv= ;; esac
for d in "$HOME/.local/bin" "$HOME/.cargo/bin" /opt/bin /usr/local/bin /opt/homebrew/bin; do
    if [ -z "$uv" ] && [ -x "$d/uv" ]; then uv=$d/uv; fi
done
if [ -z "$uv" ] && [ -x "$root/tools/$tool-$machine" ]; then uv=$root/tools/$tool-$machine; fi
report uv "$uv"

first=
case $asked in "~/"*) asked=$HOME/${asked#"~/"} ;; esac
if [ -n "$asked" ]; then
    first=$(command -v "$asked")
    case $first in /*) report python "$first" ;; *) first= ;; esac
fi
IFS=:
for d in $PATH /usr/local/bin /usr/bin "/opt/python/$minor/bin" "$HOME/.pyenv/versions/$minor".*/bin \
    "$HOME/.local/bin" "$HOME"/.local/share/uv/python/cpython-"$minor".*/bin /opt/homebrew/bin /opt/conda/bin \
    "$HOME"/*conda*/bin "$HOME"/*forge*/bin "$HOME"/*conda*/envs/*/bin "$HOME"/*forge*/envs/*/bin \
    "$root"/pythons/cpython-"$minor".*-"$machine"-*/bin; do
    case $d in */shims | '') continue ;; esac # pyenv's, which run whichever version is selected at the moment
    if [ -x "$d/python$minor" ] && [ -z "$asked" ]; then
        report python "$d/python$minor"
        first=${first:-$d/python$minor}
    fi
    for p in "$d"/python3.[0-9] "$d"/python3.[0-9][0-9]; do
        if [ -x "$p" ]; then report other "${p##*/}"; fi
    done
done
unset IFS

# A home may be shared by machines of several architectures, with interpreters in different places.
sum=$(printf '%s' "${first:-uv}" | cksum)
env=$root/envs/$key-$machine-${sum%% *}
report env "$env"
if [ -f "$env/.complete" ] && [ -x "$env/bin/python" ]; then report complete yes; fi
if [ -f "$root/code/$code" ]; then report has_code yes; fi
if [ -n "$packages" ]; then
    dpkg-query -W -f 'package ${Package} ${db:Status-Status}\n' $packages 2>/dev/null | sed -n 's/ installed$//p'
fi
report end yes
"""
)

# What installs requirements into "$env" or, if "$into" is set, into that folder; the lists of them are in "$lists".
# They come from the folder "$links" if that is set, otherwise from an index. If "$quick" is set, an index that can't be
# reached is given up at once.
_INSTALLER = r"""
unreachable='name resolution|service not known|nodename nor servname|network is unreachable'
unreachable="$unreachable|no route to|connection refused|timed out|establish a new connection|failed to resolve '"
unreachable="$unreachable|error sending request|dns error"
apply_settings() { # tool, and the command that runs it: apply the host's own settings that are to be kept
    tool=$1
    shift
    lines=$("$env/bin/python" -I -c "$settings" "$tool" "$own" "$index" "$lists/uv.toml" "$@") || return 1
    eval "$lines"
}
install() { # command: those with hashes separately, since then all their dependencies must have hashes, too
    for part in wheels exact hashed plain; do
        [ -s "$lists/$part.txt" ] || continue
        deps=
        # Dependencies need not be found where the driver's metadata holds: they are listed.
        if [ "$part" = exact ] && [ "$same" = "$(uname -s) $(uname -m)" ]; then deps=--no-deps; fi
        if [ "$part" = wheels ]; then deps=--no-deps; fi
        "$@" $deps ${into:+--target "$into"} ${links:+--no-index --find-links "$links"} \
            -r "$lists/$part.txt" -c "$lists/constraints.txt" >"$lists/log.txt" 2>&1
        status=$?
        if [ "$status" = 0 ]; then continue; fi
        if [ -n "$quick" ] && grep -Eqi "$unreachable" "$lists/log.txt"; then cat "$lists/log.txt"; fail 76; fi
        [ "$status" != 1 ] || [ -z "$quick" ] || unavailable "$@"
        cat "$lists/log.txt"
        return 1
    done
}
unavailable() { # command: print each version that the index doesn't have; an installer stops at the first one
    n=0
    for part in exact plain; do
        grep '^-' "$lists/$part.txt" >"$lists/options.txt" # where the index is, among others
        while IFS= read -r line; do
            case $line in *==*) ;; *) continue ;; esac
            n=$((n + 1))
            { cat "$lists/options.txt" && printf '%s\n' "$line"; } >"$lists/single$n.txt"
            { "$@" --dry-run --no-deps -r "$lists/single$n.txt" >/dev/null 2>&1 || echo "not available: $line"; } &
            [ $((n % 4)) != 0 ] || wait
        done <"$lists/$part.txt"
    done
    wait
}
with_uv() { # where it can't do its work; what it finds wrong with requirements is wrong for pip, too
    [ -n "$uv" ] && apply_settings uv || return 1
    if [ -n "$quick" ]; then export UV_HTTP_RETRIES=0 UV_HTTP_CONNECT_TIMEOUT=5; fi
    status=
    install "$uv" pip install --quiet --python "$env/bin/python" && return 0
    [ "$status" != 1 ] || fail 1
    return 1
}
with_pip() { # python: with its own pip, with the one it bundles, or with ours
    if "$1" -c 'import pip, sys; sys.exit([*map(int, pip.__version__.split(".")[:2])] < [22, 3])' 2>/dev/null; then
        set -- "$1" -m pip --python "$env/bin/python"
    elif "$env/bin/python" -m ensurepip >/dev/null 2>&1; then
        set -- "$env/bin/python" -m pip
    elif [ -f "$pip_wheel" ]; then
        set -- "$env/bin/python" "$pip_wheel/pip"
    else
        fail 73
    fi
    apply_settings pip "$@" || return 1
    # Modules are compiled when imported; compiling everything takes several times as long as installing it.
    install "$@" install --quiet --no-compile --progress-bar off ${quick:+--retries 1 --timeout 5} $trusted
}

write_lists() { # one file of requirements for each kind, and one of modules
    for part in wheels exact hashed plain constraints modules; do
        printf '%s\n' "$requirements" | sed -n "s/^$part //p" >"$lists/$part.txt" || return 1
    done
}
"""

# How both scripts that install begin: what they print goes one way, and requirements come over stdin.
_RECEIVE = (
    DISKS
    + r"""
exec 2>&1
LC_ALL=C
export LC_ALL
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV CONDA_PREFIX UV_WORKING_DIR UV_PROJECT
umask 077
requirements=$(cat)
"""
)

# Has uv install a Python, as the host's settings say where from. Without a network that fails at once.
PYTHON = (
    DISKS
    + r"""
exec 2>&1
umask 077
UV_PYTHON_INSTALL_DIR=$root/pythons UV_PYTHON_INSTALL_BIN=0 UV_HTTP_RETRIES=0 UV_HTTP_CONNECT_TIMEOUT=5 \
    "$uv" python install --quiet "$minor" || { disks; exit 72; }
"""
)

# Makes the environment in its final place (environments can't be moved) under a lock, and marks it once it is complete:
# neither a crash nor two concurrent drivers can leave a partial one that looks usable. Requirements come over stdin.
BUILD = (
    _RECEIVE
    + r"""for program in $programs; do
    command -v "$program" >/dev/null || { echo "@lacks $program"; exit 75; }
done
cd "$root/envs" || exit 1 # away from any pyproject.toml that uv would use

lock=$env.lock
if command -v flock >/dev/null; then
    exec 9>"$lock" || exit 1
    flock 9
else
    # Use a folder as the lock: it is stale once its owner's process is gone or, on another host, after an hour.
    until mkdir "$lock.d" 2>/dev/null; do
        [ -d "$lock.d" ] || { mkdir "$lock.d" && break; exit 1; }
        node= pid=
        { read -r node pid <"$lock.d/owner"; } 2>/dev/null
        if [ "$node" = "$(uname -n)" ] && ! kill -0 "$pid" 2>/dev/null; then rm -rf "$lock.d"; fi
        if [ -n "$(find "$lock.d" -prune -mmin +60 2>/dev/null)" ]; then rm -rf "$lock.d"; fi
        sleep 1
    done
    printf '%s %s\n' "$(uname -n)" "$$" >"$lock.d/owner"
    trap 'rm -rf "$lock.d"' EXIT
fi
if [ -f "$env/.complete" ] && [ -x "$env/bin/python" ]; then exit 0; fi

fail() { disks; rm -rf "$env"; exit "$1"; }
trap 'fail 143' HUP INT TERM
test=$root/envs/.test.$$
printf '#!/bin/sh\nexit 0\n' >"$test" && chmod 700 "$test" || fail 1
"$test"; status=$?
rm -f "$test"
[ "$status" = 0 ] || exit 71

fresh() { # python: make an empty environment of it
    rm -rf "$env"
    # Nothing is fetched, so no setting of the host's is useful here, and some would take another Python, or none.
    if [ -n "$uv" ] && (
        unset UV_CONFIG_FILE UV_MANAGED_PYTHON UV_PYTHON_PREFERENCE UV_SYSTEM_PYTHON UV_VENV_SEED
        UV_NO_CONFIG=1 "$uv" venv --quiet --python "$1" "$env"
    ); then return 0; fi
    rm -rf "$env"
    "$1" -m venv --without-pip "$env" || { rm -rf "$env"; "$1" -m virtualenv --quiet --no-seed "$env"; }
}
"""
    + _INSTALLER
    + r"""
python=
IFS='
'
for p in $pythons; do
    if "$p" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$minor" && fresh "$p"; then
        python=$p
        break
    fi
done
unset IFS
[ -n "$python" ] || fail 72
case $uv in "$root"/tools/*) touch "$uv" ;; esac
lists=$env into=
write_lists || fail 1
echo @installing
with_uv || with_pip "$python" || fail 1
(cd "$env"/lib/python*/site-packages && "$env/bin/python" -I -c "$compile" . <"$lists/modules.txt") >/dev/null 2>&1
rm -f "$env"/*.txt "$env/uv.toml" # they may contain passwords of indexes
"$env/bin/python" -c 'from cloudpickle import dumps; from msgpack import packb' || fail 1
: >"$env/.complete" || fail 1
"""
)

# Installs more for the slots of a running agent, in a folder of its own: they look there for what they do not find
# elsewhere. It appears there complete or not at all, and never changes.
SUPPLY = (
    _RECEIVE
    + r"""into=$run/packages/.$name lists=$run/packages/.$name.lists
fail() { disks; rm -rf "$into" "$lists"; exit "$1"; }
trap 'fail 143' HUP INT TERM
cd "$run/packages" && mkdir "$into" "$lists" || fail 1
"""
    + _INSTALLER
    + r"""
write_lists || fail 1
python=$(printf '%s\n' "$pythons" | head -n 1)
echo @installing
with_uv || with_pip "${python:-$env/bin/python}" || fail 1
rm -rf "$lists"
mv "$into" "$run/packages/$name" || fail 1
"""
)

# The agent reads its start map from stdin and answers with one line; by then it has detached from the terminal. Its
# socket lies in its folder or, if the path would be too long, in another one.
START = (
    DISKS
    + r"""
mask=$(umask)
run=$root/run/$identity folder=$root/run/$identity
[ "$(printf %s "$run/agent.sock" | LC_ALL=C wc -c)" -le "$longest" ] || folder=/tmp/skyward-$identity
umask 077
born() { # pid: print its start time in the kernel's units, or nothing if that is not visible
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 0
    set -- ${line##*) }
    printf '%s' "${20}"
}
trap 'rm -rf "$run" "$folder"; exit 143' HUP TERM # the driver has given up: no agent will remove them
mkdir "$run" "$run/packages" || { disks; exit 1; }
[ "$folder" = "$run" ] || mkdir "$folder" || { disks; exit 1; }
node=$(uname -n)
printf '%s %s %s\n' "$node" "${env##*/}" "$folder" >"$run/owner"
touch "$env/.complete" "$root/code/$code"
unset PYTHONHOME PYTHONPATH
PATH=$env/bin:$PATH VIRTUAL_ENV=$env SKYWARD_PACKAGES=$run/packages
SKYWARD_RUN=$run SKYWARD_SOCKETS=$folder SKYWARD_CACHE=$root
export PATH VIRTUAL_ENV SKYWARD_PACKAGES SKYWARD_RUN SKYWARD_SOCKETS SKYWARD_CACHE
cd || exit 1
{ umask "$mask" && exec "$env/bin/python" -P -c '"""
    + RUN.format("skyward.worker.agent")
    + r"""' "$root/code/$code"; } | {
    IFS= read -r line || exit 1
    printf '%s\n' "$line"
    pid=${line##*\"pid\":}
    pid=${pid# }
    pid=${pid%%[!0-9]*}
    printf '%s %s\n' "$pid" "$(born "$pid")" >"$run/pid"
    :
}
status=$?
if [ "$status" != 0 ]; then # what is broken is made again next time; other agents may use what is not
    disks
    rm -rf "$run" "$folder"
    check() { "$env/bin/python" -P -c "$@" >/dev/null 2>&1; }
    if ! check 'from cloudpickle import dumps; from msgpack import packb'; then
        rm -f "$env/.complete"
    elif ! check 'import sys, zipfile; sys.exit(bool(zipfile.ZipFile(sys.argv[1]).testzip()))' "$root/code/$code"; then
        rm -f "$root/code/$code"
    fi
    exit 1
fi

trap - HUP TERM # from here on they are the agent's

# Remove what killed agents left behind and, once a day, environments that nobody has used for two months.
unmount() { # folder: buckets that are mounted below it
    while read -r _ place kind _; do
        case "$kind $place" in "fuse.rclone $1/"*) fusermount3 -uzq "$(printf '%b' "$place")" ;; esac
    done </proc/self/mounts
}
sweep_runs() {
    for d in "$root"/run/*; do
        owner= other= pid= birth=
        read -r owner _ other <"$d/owner"
        # The home may be shared, and it is not visible from here whether another host's agent is alive.
        [ "${owner:-$node}" = "$node" ] || continue
        if read -r pid birth <"$d/pid"; then
            if kill -0 "$pid" && { [ -z "$birth" ] || [ "$(born "$pid")" = "$birth" ]; }; then continue; fi
        elif [ -z "$(find "$d" -prune -mmin +60)" ]; then
            continue # it is still being started
        fi
        unmount "$(cd "$d" && pwd -P)"
        case $other in /tmp/skyward-*) rm -rf "$other" ;; esac
        rm -rf "$d" || { find "$d" -type d -exec chmod u+rwx {} +; rm -rf "$d"; } # folders that tasks could only read
    done
}
sweep() {
    : >"$root/.swept"
    find "$root/envs" -mindepth 2 -maxdepth 2 -name .complete -mtime +60 | while read -r f; do
        d=${f%/.complete}
        grep -qs " ${d##*/} " "$root"/run/*/owner || rm -rf "$d" "$d.lock"
    done
    find "$root/code" "$root/wheels" "$root/chunks" "$root/tools" -type f -mtime +60 -exec rm -f {} +
}
sweep_runs >/dev/null 2>&1 </dev/null
if [ -z "$(find "$root/.swept" -mtime -1 2>/dev/null)" ]; then sweep >/dev/null 2>&1 </dev/null; fi
exit 0
"""
)

# Looks at the machine and, if everything is there, starts the agent at once: one round trip instead of two.
QUICK_START = (
    "inspect() ("
    + INSPECT
    + r""")
found=$(inspect </dev/null) || { printf '%s\n' "$found"; exit 1; }
printf '%s\n' "$found"
root= env= complete= has_code=
while read -r name value; do
    case $name in
        root) root=$value ;;
        env) env=$value ;;
        complete) complete=$value ;;
        has_code) has_code=$value ;;
    esac
done <<END
$found
END
[ -n "$complete" ] && [ -n "$has_code" ] && [ -z "$packages" ] || exit 0
"""
    + START
)
