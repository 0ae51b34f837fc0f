#!/bin/sh
# Proves on full-size models that the published CLIP formats load strictly and agree: makes a Python environment, writes
# seeded random checkpoints (about 2.7 GB) and runs the test on them. Needs: python3 with venv.
# Usage: tests/full_size_clip.sh [FOLDER] [MODEL ...]      (default: target/full_size_clip, ViT-B/32 and RN50)
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$root/target/full_size_clip}
[ $# -gt 0 ] && shift
python=$folder/venv/bin/python
if [ ! -x "$python" ]; then
    python3 -m venv "$folder/venv"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$root/tests/full_size_clip/requirements.txt"
fi
rm -rf "$folder/models"
"$python" -W ignore "$root/tests/full_size_clip/make.py" "$folder/models" ${1:+--models "$@"}
SCONCE_FULL_SIZE_CLIP=$folder/models cargo test --release -p sconce-tests --test full_size_clip -- --ignored --nocapture
