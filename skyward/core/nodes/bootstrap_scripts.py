"""What `bootstrap` runs on a machine: POSIX sh, for dash, bash, busybox and their like.

Variables that a script uses without setting them are set by the caller in front of it.
"""

from __future__ import annotations

import shlex

from skyward.core.system.launch import RUN

__all__ = [
    "BUILD",
    "DISKS",
    "INSTALLING",
    "LACKS",
    "LOOK",
    "NEEDS_PIP",
    "NOEXEC",
    "NO_PYTHON",
    "PRELUDE",
    "START",
    "after",
]

INSTALLING = "@installing"  # a line of output: what fails from here on is mostly the packages' fault
NOEXEC = 71
NO_PYTHON = 72
NEEDS_PIP = 73
LACKS = 75  # a program that a requirement is fetched by
PRELUDE = 74


def after(prelude: str, script: str) -> str:
    """A script that runs in the environment that a login shell has once it has run `prelude`.

    bash where there is one, since what a prelude needs (``module``) is mostly defined for it. What profiles print, and
    what they would read, is kept from the script. It comes in the environment: an argument could be seen by others.
    """
    body = f"{{ {prelude}\n}} || exit {PRELUDE}\nexec /bin/sh -c 'eval \"$SKYWARD_SCRIPT\"' <&4 4<&- >&3 3>&-"
    return (
        f"SKYWARD_SCRIPT={shlex.quote(f'unset SKYWARD_SCRIPT{chr(10)}{script}')}; export SKYWARD_SCRIPT\n"
        "shell=$(command -v bash) || shell=/bin/sh\n"
        f'exec "$shell" -l -c {shlex.quote(body)} 4<&0 </dev/null 3>&1 >&2'
    )


# A line for each place that something may be written to, while it is as full as it was when that failed.
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

# Tells in one round trip all that the later steps need to know. Interpreters are only looked for, not run: that takes
# time, and when the environment is there already nobody needs them.
LOOK = (
    DISKS
    + r"""
LC_ALL=C; export LC_ALL
umask 077
say() { printf '%s %s\n' "$1" "$2"; }
cache=${XDG_CACHE_HOME:-}
case $cache in /*) ;; *) cache=$HOME/.cache ;; esac
root=$cache/skyward
machine=$(uname -m)
say root "$root"
say system "$(uname -s) $machine"
mkdir -p "$root/envs" "$root/code" "$root/run" && : >"$root/.write.$$" && rm -f "$root/.write.$$" || { disks; exit 1; }

uv=$(command -v uv)
case $uv in /*) ;; *) uv= ;; esac
for d in "$HOME/.local/bin" "$HOME/.cargo/bin" /opt/bin /usr/local/bin /opt/homebrew/bin; do
    if [ -z "$uv" ] && [ -x "$d/uv" ]; then uv=$d/uv; fi
done
say uv "$uv"

first=
case $asked in "~/"*) asked=$HOME/${asked#"~/"} ;; esac
if [ -n "$asked" ]; then
    first=$(command -v "$asked")
    case $first in /*) say python "$first" ;; *) first= ;; esac
fi
IFS=:
for d in $PATH /usr/local/bin /usr/bin "/opt/python/$minor/bin" "$HOME/.pyenv/versions/$minor".*/bin \
    "$HOME/.local/bin" "$HOME"/.local/share/uv/python/cpython-"$minor".*/bin /opt/homebrew/bin /opt/conda/bin \
    "$HOME"/*conda*/bin "$HOME"/*forge*/bin "$HOME"/*conda*/envs/*/bin "$HOME"/*forge*/envs/*/bin; do
    case $d in */shims | '') continue ;; esac # pyenv's: they run whatever it is told to at the moment
    if [ -x "$d/python$minor" ] && [ -z "$asked" ]; then
        say python "$d/python$minor"
        first=${first:-$d/python$minor}
    fi
    for p in "$d"/python3.[0-9] "$d"/python3.[0-9][0-9]; do
        if [ -x "$p" ]; then say other "${p##*/}"; fi
    done
done
unset IFS

# A home may be shared by machines of several kinds, with their interpreters in several places.
sum=$(printf '%s' "${first:-uv}" | cksum)
env=$root/envs/$key-$machine-${sum%% *}
say env "$env"
if [ -f "$env/.complete" ] && [ -x "$env/bin/python" ]; then say complete yes; fi
if [ -f "$root/code/$code" ]; then say has_code yes; fi
if [ -n "$packages" ]; then
    dpkg-query -W -f 'package ${Package} ${db:Status-Status}\n' $packages 2>/dev/null | sed -n 's/ installed$//p'
fi
say end yes
"""
)

# Makes the environment at its final place (environments can't be moved) under a lock, and marks it when it is whole:
# neither a crash nor two drivers at a time can leave half of one that looks usable. Requirements come over stdin.
BUILD = (
    DISKS
    + r"""
exec 2>&1
LC_ALL=C
export LC_ALL
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV CONDA_PREFIX UV_WORKING_DIR UV_PROJECT
umask 077
requirements=$(cat)
for program in $programs; do
    command -v "$program" >/dev/null || { echo "@lacks $program"; exit 75; }
done
cd "$root/envs" || exit 1 # away from a pyproject.toml that uv would heed

lock=$env.lock
if command -v flock >/dev/null; then
    exec 9>"$lock" || exit 1
    flock 9
else
    # A folder as the lock: it is stale when its owner's process is gone or, on another host, after an hour.
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

fresh() { # python: an empty environment of it
    rm -rf "$env"
    case $1 in
    */*)
        # Nothing is fetched: no setting of the host's is of use here, and some would take another Python, or none.
        if [ -n "$uv" ] && (
            unset UV_CONFIG_FILE UV_MANAGED_PYTHON UV_PYTHON_PREFERENCE UV_SYSTEM_PYTHON UV_VENV_SEED
            UV_NO_CONFIG=1 "$uv" venv --quiet --python "$1" "$env"
        ); then return 0; fi
        ;;
    *)
        [ -n "$uv" ] && "$uv" venv --quiet --python "$1" "$env"
        return
        ;;
    esac
    rm -rf "$env"
    "$1" -m venv --without-pip "$env" || { rm -rf "$env"; "$1" -m virtualenv --quiet --no-seed "$env"; }
}
heed() { # tool, and how it is run: take what holds of the host's own settings
    tool=$1
    shift
    lines=$("$env/bin/python" -I -c "$settings" "$tool" "$own" "$index" "$env/uv.toml" "$@") || return 1
    eval "$lines"
}
install() { # how packages are installed: with hashes apart, as then all that comes with them must have one
    for part in needed hashed plain; do
        [ -s "$env/$part.txt" ] || continue
        "$@" -r "$env/$part.txt" -c "$env/constraints.txt" || return 1
    done
}
with_uv() {
    [ -n "$uv" ] && heed uv && install "$uv" pip install --quiet --python "$env/bin/python"
}
with_pip() { # python: by its own pip, by one that it brings, or by ours
    if "$1" -c 'import pip, sys; sys.exit([*map(int, pip.__version__.split(".")[:2])] < [22, 3])' 2>/dev/null; then
        set -- "$1" -m pip --python "$env/bin/python"
    elif "$env/bin/python" -m ensurepip >/dev/null 2>&1; then
        set -- "$env/bin/python" -m pip
    elif [ -n "$pip_wheel" ]; then
        set -- "$env/bin/python" "$pip_wheel/pip"
    else
        fail 73
    fi
    heed pip "$@" || return 1
    # What is imported is compiled then; to compile all that is installed takes several times as long as to install it.
    install "$@" install --quiet --no-compile --progress-bar off $trusted
}

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
if [ -z "$python" ]; then
    if [ -n "$uv" ] && [ -z "$asked" ] && fresh "$minor"; then python=$env/bin/python; else fail 72; fi
fi
for part in needed hashed plain constraints; do
    printf '%s\n' "$requirements" | sed -n "s/^$part //p" >"$env/$part.txt" || fail 1
done
echo @installing
with_uv || with_pip "$python" || fail 1
rm -f "$env"/*.txt "$env/uv.toml" # they may hold passwords of indexes
"$env/bin/python" -c 'from cloudpickle import dumps; from msgpack import packb' || fail 1
: >"$env/.complete" || fail 1
"""
)

# The agent reads its start map from stdin and answers with one line; then it has left the terminal by itself.
START = (
    DISKS
    + r"""
mask=$(umask)
umask 077
born() { # pid: when it started, as its kernel counts; empty where that can't be seen
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 0
    set -- ${line##*) }
    printf '%s' "${20}"
}
mkdir "$run" || { disks; exit 1; }
[ "$folder" = "$run" ] || mkdir "$folder" || { disks; exit 1; }
node=$(uname -n)
printf '%s %s %s\n' "$node" "${env##*/}" "$folder" >"$run/owner"
touch "$env/.complete" "$root/code/$code"
unset PYTHONHOME PYTHONPATH
PATH=$env/bin:$PATH VIRTUAL_ENV=$env
export PATH VIRTUAL_ENV
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
if [ "$status" != 0 ]; then # what may be broken is made anew the next time
    disks
    rm -rf "$run" "$folder" "$root/code/$code"
    check='from cloudpickle import dumps; from msgpack import packb'
    "$env/bin/python" -P -c "$check" >/dev/null 2>&1 || rm -f "$env/.complete"
    exit 1
fi

# What agents that were killed left behind, and once a day environments that nobody started for two months.
sweep_runs() {
    for d in "$root"/run/*; do
        owner= other= pid= birth=
        read -r owner _ other <"$d/owner"
        # The home may be shared: whether another host's agent lives can't be seen from here.
        [ "${owner:-$node}" = "$node" ] || continue
        if read -r pid birth <"$d/pid"; then
            if kill -0 "$pid" && { [ -z "$birth" ] || [ "$(born "$pid")" = "$birth" ]; }; then continue; fi
        elif [ -z "$(find "$d" -prune -mmin +60)" ]; then
            continue # it is being started
        fi
        case $other in /tmp/skyward-*) rm -rf "$other" ;; esac
        rm -rf "$d"
    done
}
sweep() {
    : >"$root/.swept"
    find "$root/envs" -mindepth 2 -maxdepth 2 -name .complete -mtime +60 | while read -r f; do
        d=${f%/.complete}
        grep -qs " ${d##*/} " "$root"/run/*/owner || rm -rf "$d" "$d.lock"
    done
    find "$root/code" -type f -mtime +60 -exec rm -f {} +
}
sweep_runs >/dev/null 2>&1 </dev/null
if [ -z "$(find "$root/.swept" -mtime -1 2>/dev/null)" ]; then sweep >/dev/null 2>&1 </dev/null; fi
exit 0
"""
)
