# Shared by the scripts: one line per step, the rest in a log that is shown when a step fails.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p .make

say() { printf '==> %s\n' "$*"; }

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# quietly <log name> <command...>: status of the command; its output only if it fails.
quietly() {
    local log=".make/$1.log" status=0
    shift
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        cat "$log" >&2
    fi
    return "$status"
}

can_install() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

# apt_install <packages...>, without starting any daemon that a package brings. In a subshell, so
# that the policy goes away however this ends.
apt_install() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-update apt-get -q update &&
        quietly apt-install apt-get -q install -y --no-install-recommends "$@"
)

# parallel <pytest command...>: one process more than there are cores, up to four, because many
# tests wait; each has servers of its own. The order of collection stays: slow tests come first.
parallel() {
    local processes=$(($(nproc) + 1))
    "$@" --numprocesses $((processes > 4 ? 4 : processes)) --dist loadfile --no-loadscope-reorder
}
