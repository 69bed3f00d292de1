#!/usr/bin/env bash
# Prepares a machine for llc: system packages (apt), .venv, pinned Python packages. `make setup` runs it.
#
#   [PYTHON=python3.12] bash scripts/setup.sh [--fashion-mnist] [--browser]
#
# PYTHON chooses the interpreter (else python3); --fashion-mnist adds the demo's images, --browser what the tests of
# web pages need.
# A second run takes a fraction of a second if .venv is whole and made from the same sources. Otherwise:
#   one of `sources` changed, or llc's library is gone   the packages are installed over what is there
#   .venv unfinished, damaged, moved, or of another Python   .venv is made again
#   .venv made by hand                                       it is kept under another name, and .venv is made
# .venv/llc-setup/done is written last and names what .venv was made from. .venv/llc-setup/files lists the files
# that it held then. A .venv without `done` is not trusted.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
venv="$root/.venv"
state="$venv/llc-setup"
dataset='dataset-fashion-mnist'
fashion_mnist=/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

PATH=${PATH//"$venv/bin:"/}   # an activated .venv must not be what .venv is made with

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

want_fashion_mnist=
want_browser=
for argument in "$@"; do
    case $argument in
        --fashion-mnist) want_fashion_mnist=yes ;;
        --browser) want_browser=yes ;;
        *) fail "unknown argument '$argument'; expected --fashion-mnist or --browser" ;;
    esac
done

# ---- what .venv was made from, and whether it is still all there -------------------------------------------

# One line that differs whenever .venv's interpreter is another one or the project lies elsewhere.
interpreter_of() {
    "$1" -c 'import sys; print(*sys.version_info[:3], sys.implementation.cache_tag, sys.base_prefix)'
}
# What .venv is made from, the sources of llc's native library included.
sources() {
    sha256sum requirements.txt pyproject.toml setup.py scripts/setup.sh
    find llc \( -name '*.cpp' -o -name '*.h' \) -exec sha256sum {} + | sort -k 2
}
# Names only, so that you may edit installed files and add packages.
files_of_venv() { (cd "$venv" && find . \( -type f -o -type l \) ! -name '*.pyc' ! -path './llc-setup/*' | sort); }

# Sets `found` to whole, to old (something to install into it), or to broken, with the reason in `why`.
inspect_venv() {
    found=broken
    [ -e "$venv" ] || { why="there is none yet"; return; }
    [ -d "$state" ] || { why="the one here was not made by this script"; return; }
    [ -f "$state/done" ] || { why="the one here was never finished"; return; }
    local installed lost
    why="the Python of the one here does not start"
    installed=$(interpreter_of "$venv/bin/python" 2>/dev/null) || return 0
    why="the one here was moved, or its Python changed"
    [ "$installed at $venv" = "$(head -n 1 "$state/done")" ] || return 0
    if [ -n "${PYTHON:-}" ] && [ "$installed" != "$(interpreter_of "$PYTHON")" ]; then
        why="the one here has another Python than $PYTHON"; return
    fi
    lost=$(comm -23 "$state/files" <(files_of_venv))
    if [ -n "$lost" ]; then why="files are missing from the one here, e.g. ${lost%%$'\n'*}"; return; fi
    if [ "$(sources)" != "$(tail -n +2 "$state/done")" ]; then found=old; return; fi
    # a system upgrade may have removed FFCV's OpenCV; `make clean` removes llc's own library
    if [ ! -e llc/native/_native.so ] ||
        ldd llc/native/_native.so "$venv"/lib/python*/site-packages/ffcv/_libffcv*.so 2>/dev/null |
            grep -q 'not found'; then
        found=old
        return
    fi
    found=whole
}

# ---- system packages ---------------------------------------------------------------------------------------

# Sets `missing` to the Debian packages for what this machine really cannot do: having the capability counts, not the
# package, so a machine with its own compiler or OpenCV needs no apt.
inspect_system() {
    missing=()
    # Debian has python3-venv for its default interpreter, python3.12-venv for that one beside it
    local prefix=python3 version='import sys; print("python%d.%d" % sys.version_info[:2])'
    if [ -x /usr/bin/python3 ] && [ "$("$python" -c 'import sys; print(sys.base_prefix)')" = /usr ]; then
        prefix=$("$python" -c "$version")
        [ "$prefix" != "$(/usr/bin/python3 -c "$version")" ] || prefix=python3
    fi
    "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=("$prefix-venv")
    local headers; headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$headers/Python.h" ] || missing+=("$prefix-dev")
    g++ -x c++ - -o /dev/null 2>/dev/null <<< 'int main() {}' || missing+=(g++)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    pkg-config --exists opencv4 2>/dev/null || missing+=(libopencv-dev)
    pkg-config --exists libturbojpeg 2>/dev/null || missing+=(libturbojpeg0-dev)
    pkg-config --exists libjpeg 2>/dev/null || missing+=(libjpeg-dev)
}

# Sets `as_root` to the command in front of apt-get (nothing for root); false where apt-get cannot be run here.
# `may_ask`: yes lets sudo ask for a password where somebody is there to type it.
find_apt() {
    local may_ask=$1
    as_root=()
    command -v apt-get >/dev/null || { why_not="there is no apt-get here"; return 1; }
    [ "$(id -u)" != 0 ] || return 0
    command -v sudo >/dev/null || { why_not="you are not root and there is no sudo"; return 1; }
    as_root=(sudo)
    sudo -n true 2>/dev/null && return 0
    [ "$may_ask" = yes ] && [ -t 0 ] && return 0
    why_not="you are not root and sudo wants a password"
    return 1
}

# 9 is the lock below, which nothing that apt-get starts shall keep
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" 9<&-; }

# On Debian 12, leaving out recommended packages saves 128 of them and 245 MB; FFCV does not need them.
apt_install() { apt install -y --no-install-recommends "$@"; }

install_system_packages() {
    inspect_system
    [ ${#missing[@]} -gt 0 ] || return 0
    local packages="${missing[*]}"
    if ! find_apt yes; then
        fail "llc needs these Debian/Ubuntu packages, and they cannot be installed from here: $why_not." \
             "Have them installed, then run the same command again:" \
             "    apt-get install --no-install-recommends $packages"
    fi
    say "installing $packages (apt)"
    apt update || say "apt-get update failed; going on with the package lists that are here"
    if [ -n "$want_fashion_mnist" ] && [ ! -e "$fashion_mnist" ] && apt-cache show "$dataset" &>/dev/null; then
        missing+=("$dataset")
    fi
    apt_install "${missing[@]}" || fail "apt-get could not install: $packages" \
        "On Ubuntu some of these are in the part called universe: add-apt-repository universe"
    inspect_system
    [ ${#missing[@]} -eq 0 ] || fail "apt-get ran, and this is still not usable here: ${missing[*]}" \
        "(looked for by $python and $(command -v g++ pkg-config | tr '\n' ' '))"
}

# The demo's images. It is no error if they are missing, because torchvision can download the same files.
install_fashion_mnist() {
    [ ! -e "$fashion_mnist" ] && [ ! -e "$state/fashion-mnist-asked" ] || return 0
    touch "$state/fashion-mnist-asked"   # once is enough: this is not the only way to these images
    if ! find_apt no; then say "not installing $dataset: $why_not"; return 0; fi
    say "installing $dataset (apt)"
    { apt update && apt_install "$dataset"; } || say "apt-get has no $dataset; the demo will try torchvision's download"
}

# Without it, the tests of web pages, tests/*/test_page.py, fail and say so; everything else works.
install_browser() {
    ! { command -v chromium && command -v chromedriver; } >/dev/null || return 0
    local browser=(chromium chromium-driver)
    if ! find_apt no; then say "not installing ${browser[*]}: $why_not"; return 0; fi
    say "installing ${browser[*]} (apt)"
    { apt update && apt_install "${browser[@]}"; } || say "apt-get has no ${browser[*]}; the tests of web pages will fail"
}

# ---- .venv -------------------------------------------------------------------------------------------------

# Sets `python`: the interpreter asked for, else the one that was asked for when .venv was made, else python3.
choose_python() {
    python=${PYTHON:-$(cat "$state/python" 2>/dev/null || echo python3)}
    [ "$found" = broken ] || python=$venv/bin/python
    chosen=$python
    command -v "$python" >/dev/null || fail "$python: no such program; name a Python, e.g. make PYTHON=python3.12 setup"
    "$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' || fail \
        "$python is $("$python" --version 2>&1); llc needs Python 3.10 or newer: make PYTHON=python3.12 setup"
    # its base, if this is the Python of a virtual environment, perhaps of the .venv that is about to be replaced
    [ "$found" != broken ] || python=$("$python" -c 'import sys; print(sys._base_executable)')
}

make_venv() {
    say "making .venv with $("$python" --version) ($why)"
    if [ -d "$state" ]; then
        # renamed first: of a removal that is broken off, nothing may look like a .venv
        rm -rf "$venv.removed"
        mv "$venv" "$venv.removed"
    elif [ -e "$venv" ]; then
        local kept; kept=.venv.$(date +%Y%m%d-%H%M%S)
        mv "$venv" "$kept"
        say "the .venv that was here is now $kept: remove it if you do not need it"
    fi
    rm -rf "$venv.removed"
    mkdir -p "$state"   # before anything else: what is broken off from here on is known for unfinished
    [ "$chosen" = python3 ] || echo "$python" > "$state/python"
    "$python" -m venv "$venv"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

install_python_packages() {
    local quiet=(--quiet)
    [ -t 1 ] && quiet=()
    if [ "$found" = old ]; then
        say "installing what has changed into .venv"
    else
        say "installing the packages of requirements.txt: 6 GB on disk, most of it torch; may take minutes"
    fi
    # FFCV links every library of OpenCV and uses two: without --as-needed, each start would load all of them.
    export LDFLAGS="-Wl,--as-needed ${LDFLAGS:-}"
    # uv downloads, unpacks and compiles several files at a time. It does not read pip's settings, such as a
    # mirror. So pip follows where uv fails.
    # --use-pep517: older pips build FFCV in .venv itself otherwise, with whatever setuptools is there.
    { pip install "${quiet[@]}" "$(grep -o '^uv==[0-9.]*' requirements.txt)" \
        && "$venv/bin/python" -m uv pip install "${quiet[@]}" --compile-bytecode --python "$venv/bin/python" \
            -r requirements.txt; } \
        || { say "uv could not install requirements.txt (the reason is above); trying pip" \
            && pip install "${quiet[@]}" --use-pep517 -r requirements.txt; } \
        || fail "pip could not install requirements.txt (the reason is above); it is for Python 3.10 to 3.13"
    # With the setuptools of requirements.txt, so that nothing more is downloaded.
    pip install "${quiet[@]}" --no-deps --no-build-isolation -e .
    if ! "$venv/bin/python" -c 'import ffcv' 2>/dev/null; then
        # pip may have kept an FFCV that was built against libraries that are no longer here
        pip install "${quiet[@]}" --use-pep517 --no-cache-dir --force-reinstall --no-deps \
            "$(grep -o '^ffcv==[0-9.]*' requirements.txt)"
        "$venv/bin/python" -c 'import ffcv' || fail "FFCV was built and cannot be imported (the reason is above)." \
            "A library it does not find has to be installed: libGL is in Debian's libgl1, libgthread in libglib2.0-0"
    fi
}

# ---- in order ----------------------------------------------------------------------------------------------

# One set-up at a time in this folder: this file is locked, and the system unlocks it when the set-up ends.
if command -v flock >/dev/null; then
    exec 9<"${BASH_SOURCE[0]}"
    flock -n 9 || { say "waiting for another set-up in this folder"; flock 9; }
fi

inspect_venv
if [ "$found" != whole ]; then
    started=$SECONDS
    choose_python
    install_system_packages
    if [ "$found" = broken ]; then make_venv; fi
    rm -f "$state/done"
    install_python_packages
    files_of_venv > "$state/files"
    { echo "$(interpreter_of "$venv/bin/python") at $venv"; sources; } > "$state/done.new"
    mv "$state/done.new" "$state/done"
    say "done in $((SECONDS - started)) s"
fi
if [ -n "$want_fashion_mnist" ]; then install_fashion_mnist; fi
if [ -n "$want_browser" ]; then install_browser; fi
