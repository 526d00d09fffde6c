# shellcheck shell=bash
# Sourced by ./run and ./test: makes the virtual environment that both work in, if it is not there or out of date.
#
#   FUNICULAR_VENV     where it is (default: .venv beside this project's pyproject.toml)
#   FUNICULAR_PYTHON   the Python it is made with (default: python3)
#   FUNICULAR_EXTRA    cpu (default) or cuda: which lock is installed (cuda is unverified, docs/dependencies.md)

FUNICULAR_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
FUNICULAR_VENV="${FUNICULAR_VENV:-$FUNICULAR_ROOT/.venv}"
FUNICULAR_EXTRA="${FUNICULAR_EXTRA:-cpu}"
FUNICULAR_UV_VERSION=0.13.9

say() { printf '[%4d s] %s\n' "$SECONDS" "$*" >&2; }

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Ready, or exits with what to do. Afterwards `python` and `funicular` are the environment's.
bootstrap() {
    local lock="$FUNICULAR_ROOT/requirements-$FUNICULAR_EXTRA.lock" python="${FUNICULAR_PYTHON:-python3}" wanted
    [ -f "$lock" ] || fail "FUNICULAR_EXTRA=$FUNICULAR_EXTRA: expected cpu or cuda"
    check_prerequisites "$python"
    # One line for the packages, one for the project: an edit of pyproject.toml alone reinstalls no packages.
    wanted="$(digest "$lock" <("$python" -VV) <(echo "$FUNICULAR_UV_VERSION"))
$(digest "$lock" "$FUNICULAR_ROOT/pyproject.toml" <(echo "$FUNICULAR_ROOT"))"
    if [ "$(stamp)" != "$wanted" ]; then
        mkdir -p "$FUNICULAR_VENV"
        exec 9>"$FUNICULAR_VENV/.funicular-lock"
        if ! flock --nonblock 9; then
            say "another set-up of $FUNICULAR_VENV is under way; waiting for it (30 minutes at most)"
            flock --timeout 1800 9 || fail "still locked: $FUNICULAR_VENV/.funicular-lock"
        fi
        # The other set-up may have done it all.
        [ "$(stamp)" = "$wanted" ] || set_up "$lock" "$python" "$wanted"
        exec 9>&-
    fi
    export VIRTUAL_ENV="$FUNICULAR_VENV" PATH="$FUNICULAR_VENV/bin:$PATH"
}

digest() { cat "$@" | sha256sum | cut -d ' ' -f 1; }

stamp() { cat "$FUNICULAR_VENV/.funicular-stamp" 2>/dev/null; }

# What pip cannot bring. All of it is reported at once.
check_prerequisites() {
    local missing=()
    if [ -n "${FUNICULAR_PYTHON:-}" ] && ! command -v "$1" >/dev/null; then
        fail "FUNICULAR_PYTHON=$1: there is no such program; expected Python 3.11 or newer, such as python3.11." \
            "Without the variable, python3 is taken."
    fi
    command -v "$1" >/dev/null || missing+=(python3 python3-venv)
    if [ ${#missing[@]} = 0 ]; then
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "$1 is $("$1" --version 2>&1); Funicular needs Python 3.11 or newer." \
                "If another one is installed: FUNICULAR_PYTHON=python3.11 $0"
        "$1" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    fi
    if [ "$FUNICULAR_EXTRA" = cpu ] && ! has_libnuma; then
        missing+=(libnuma1) # vLLM's CPU build links it
    fi
    [ ${#missing[@]} = 0 ] || fail "These system packages are missing: ${missing[*]}" "Install them with:" \
        "    sudo apt-get update && sudo apt-get install -y ${missing[*]}"
}

has_libnuma() {
    { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -F libnuma.so.1; } >/dev/null ||
        [ -n "$(find /lib /lib64 /usr/lib /usr/lib64 /usr/local/lib -name libnuma.so.1 -print -quit 2>/dev/null)" ]
}

set_up() {
    local lock="$1" python="$2" wanted="$3" bin="$FUNICULAR_VENV/bin" packages
    packages="${wanted%%$'\n'*}"
    if [ "$(stamp | head -n 1)" != "$packages" ]; then
        say "making $FUNICULAR_VENV: $(wc -l <"$lock") packages, about 3.5 GB, a few minutes the first time"
        rm -f "$FUNICULAR_VENV/.funicular-stamp"
        "$python" -m venv "$FUNICULAR_VENV" ||
            fail "$python -m venv $FUNICULAR_VENV failed; the reason stands above."
        "$bin/python" -m pip install --quiet --disable-pip-version-check "uv==$FUNICULAR_UV_VERSION" ||
            say "uv cannot be installed; going on with pip"
        say "installing $(basename "$lock"): minutes without a line while the packages' Python files are compiled"
        install_lock "$lock" ||
            fail "The packages could not be installed; the reason stands above. Run $0 again to go on."
        printf '%s\n' "$packages" >"$FUNICULAR_VENV/.funicular-stamp"
    fi
    say "installing funicular itself, editable"
    "$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        -e "$FUNICULAR_ROOT" || fail "Funicular itself could not be installed; the reason stands above."
    printf '%s\n' "$wanted" >"$FUNICULAR_VENV/.funicular-stamp"
    say "the environment is ready"
}

# --no-deps: the lock is complete, and leaves out on purpose what some packages ask for (docs/dependencies.md).
install_lock() {
    local lock="$1" bin="$FUNICULAR_VENV/bin" links backend=()
    links="$(torch_wheel_folder)"
    if [ -z "$links" ] && [ "$FUNICULAR_EXTRA" = cpu ]; then
        backend=(--torch-backend cpu) # PyTorch's CPU builds are on no default index
    fi
    if [ -x "$bin/uv" ]; then
        UV_FIND_LINKS="$links" "$bin/uv" pip install --python "$bin/python" --no-deps --compile-bytecode \
            "${backend[@]}" -r "$lock" 2>&1 | grep --line-buffered -v '^ [-+~] ' >&2
        [ "${PIPESTATUS[0]}" = 0 ] && return
        say "uv failed; trying pip"
    fi
    "$bin/python" -m pip install --disable-pip-version-check --no-deps -r "$lock" >&2
}

# A folder of PIP_FIND_LINKS that holds a torch wheel; uv does not read that variable. Empty if there is none.
torch_wheel_folder() {
    local folder
    for folder in ${PIP_FIND_LINKS:-}; do
        if compgen -G "$folder/torch-*.whl" >/dev/null; then
            printf '%s' "$folder"
            return
        fi
    done
}
