#!/usr/bin/env bash
# The quick tests on Debian 13, with its own Python 3.13 and its own torch 2.6 (a build for processors alone), and the newest
# versions of everything else: scripts/test_debian.sh [FOLDER], which comes to hold the system (2.5 GB) and can be used again.
# With --only-make in place of FOLDER the system is made, and nothing is tested.
# Needs root and debootstrap; where they are not there, or Debian's packages are out of reach, one line says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
only_make=
if [ "${1:-}" = --only-make ]; then only_make=yes; shift; fi
root=$(realpath -m "${1:-build/debian}")
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

skip() { echo "skipped: $1"; exit 0; }
[ "$(id -u)" = 0 ] || skip "a system of its own needs root"
command -v debootstrap >/dev/null || skip "there is no debootstrap"
unshare --mount mount -t tmpfs none /mnt 2>/dev/null || skip "nothing may be mounted here"

if [ ! -e "$root/made" ]; then
	rm -rf "$root"
	mkdir -p "$root"
	debootstrap --variant=minbase --include=ca-certificates,python3-torch,python3-venv trixie "$root" "$mirror" >"$root.log" 2>&1 ||
		skip "Debian 13 could not be had: $(tail -n 1 "$root.log")"
	touch "$root/made"
fi
if [ "$only_make" ]; then exit 0; fi
cp /etc/resolv.conf "$root/etc/resolv.conf"
rm -rf "$root/etc/ssl/certs" # links, some of which would lead out of the folder
cp -rL /etc/ssl/certs "$root/etc/ssl/certs"
rm -rf "$root/deftx"
mkdir "$root/deftx"
git ls-files -z | xargs -0 cp --parents --target-directory "$root/deftx"

# a namespace of mounts of its own, which ends with the tests
status=0
unshare --mount bash -s "$root" <<'INSIDE' || status=$?
set -euo pipefail
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" /usr/bin/env -i HOME=/root PATH=/usr/bin:/bin:/usr/sbin LANG=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
	PIP_DEFAULT_TIMEOUT=180 PIP_DISABLE_PIP_VERSION_CHECK=1 bash -euo pipefail -c '
	cd /deftx
	[ -d /venv ] || python3 -m venv --system-site-packages /venv
	/venv/bin/pip install --quiet --editable ".[data,plot,report,serve]" hypothesis pytest pytest-xdist || exit 75
	/venv/bin/python -c "import platform, torch, transformers; print(platform.python_version(), torch.__version__, transformers.__version__)"
	/venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile -m "not slow and not once" -W default -q'
INSIDE
[ "$status" != 75 ] || skip "the other packages could not be had"
exit "$status"
