# shellcheck shell=bash
# Sets up what every script needs on a fresh machine: a virtual environment with the pinned
# packages of constraints.txt, and bubblewrap. Sourced from scripts with ROOT set to the repository;
# afterwards the commands of the environment are first on the PATH. When everything is there
# already, it takes a few hundredths of a second.

VENV="$ROOT/.venv"
STAMP="$VENV/.setup"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# Runs a command as root: directly, or through sudo where that asks nothing.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

# apt_install PACKAGE WHY: installs a Debian package, or says how to.
apt_install() {
    local log
    say "installing the system package $1 ($2)"
    log=$(mktemp)
    if command -v apt-get >/dev/null && {
        as_root apt-get update -qq &&
            as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "$1"
    } >"$log" 2>&1; then
        rm -f "$log"
        hash -r
        return
    fi
    tail -n 5 "$log" >&2
    rm -f "$log"
    die "$2, but $1 is missing: run \`sudo apt-get install $1\` and start again"
}

# Installs the programs of PostgreSQL, for tests that start a server of their own; no cluster is
# made or started. Without them these tests are skipped, and say so.
install_postgres() {
    local programs=(/usr/lib/postgresql/*/bin/initdb) settings=/etc/postgresql-common
    [ ! -x "${programs[0]}" ] || return 0
    if ! command -v apt-get >/dev/null || ! as_root true; then
        say "PostgreSQL is not installed; its tests are skipped"
        return
    fi
    # Read when the package is installed: it would make a cluster and start it.
    as_root mkdir -p "$settings"
    [ -e "$settings/createcluster.conf" ] ||
        printf 'create_main_cluster = false\n' |
        as_root tee "$settings/createcluster.conf" >/dev/null
    (apt_install postgresql "a server is started in tests") ||
        say "PostgreSQL cannot be installed; its tests are skipped"
}

# Installs a browser for the tests of the dashboard, where there is none.
install_chromium() {
    command -v chromium >/dev/null && return
    (apt_install chromium "the dashboard is tested in a browser") ||
        say "Chromium cannot be installed; tests of the dashboard are skipped"
}

# Installs the compiler that makes the fastest merges; its tests are skipped without it.
install_clang() {
    local package
    command -v clang++ >/dev/null && echo '#include <omp.h>' | clang++ -fopenmp -E -x c++ - >/dev/null 2>&1 && return
    for package in clang libomp-dev; do
        (apt_install "$package" "merges are compiled by it where it is") || {
            say "$package cannot be installed; GCC compiles merges, where it is"
            return
        }
    done
}

# Prints a Python of version 3.11 or later.
find_python() {
    local candidate found=""
    for candidate in python3 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
        found="$found $("$candidate" -V 2>&1 || true)"
    done
    die "Python 3.11 or later is needed, found${found:- none}. Install it, so that python3 is it"
}

# What the environment depends on. Starting its python also shows that it still runs.
wanted_stamp() {
    printf '%s\n' "$ROOT"
    "$VENV/bin/python" -V 2>&1 || true
    cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" "$ROOT/scripts/lib/setup.sh" | sha256sum
}

make_venv() {
    local python torch
    if ! "$VENV/bin/python" -m pip -V >/dev/null 2>&1; then
        python=$(find_python)
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            apt_install python3-venv "python3 must be able to make virtual environments"
        say "making .venv with $("$python" -V)"
        "$python" -m venv --clear "$VENV"
    fi
    # Alone and first: a looser request could fetch another build of several GB.
    torch=$(grep -E '^torch==' "$ROOT/constraints.txt")
    say "installing $torch"
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check "$torch"
    say "installing the project and what it needs (a few minutes)"
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check \
        -c "$ROOT/constraints.txt" -e "${ROOT}[dev]"
    wanted_stamp >"$STAMP"
}

set_up() {
    local start=$SECONDS
    # Generated code is run inside it, and nowhere else.
    command -v bwrap >/dev/null || apt_install bubblewrap "generated code is run in a sandbox"
    if [ "$(wanted_stamp)" != "$(cat "$STAMP" 2>/dev/null)" ]; then
        # Of several scripts that start at the same time one does the work, and the others wait.
        exec 9<"$ROOT/pyproject.toml"
        command -v flock >/dev/null && flock 9
        if [ "$(wanted_stamp)" != "$(cat "$STAMP" 2>/dev/null)" ]; then
            make_venv
            say "set up in $((SECONDS - start)) s"
        fi
        exec 9<&-
    fi
    PATH="$VENV/bin:$PATH"
    export PATH VIRTUAL_ENV="$VENV"
}
