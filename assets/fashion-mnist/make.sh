#!/bin/sh
# Makes the four files of this folder from Debian's package dataset-fashion-mnist:
# the first 204 training images of each class and the first 200 test images of each class, in the package's order.
# Needs apt-get, dpkg-deb and python3; changes nothing outside this folder. Same package, same bytes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download dataset-fashion-mnist
dpkg-deb -x dataset-fashion-mnist_*.deb .
python3 - "$work/usr/share/datasets/fashion-mnist" "$here" <<'PYTHON'
import gzip, os, struct, sys

source, target = sys.argv[1:]

def read(name, rank):
    data = gzip.open(os.path.join(source, name)).read()
    assert data[:4] == bytes([0, 0, 8, rank]), name
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return shape, data[4 + 4 * rank :]

def write(name, shape, data):
    # No name and no time in the gzip header: the same bytes every time.
    packed = gzip.compress(bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data, 9, mtime=0)
    open(os.path.join(target, name), "wb").write(packed)

for part, per_class in [("train", 204), ("t10k", 200)]:
    (count, height, width), images = read(f"{part}-images-idx3-ubyte.gz", 3)
    _, labels = read(f"{part}-labels-idx1-ubyte.gz", 1)
    seen = [0] * 10
    kept = []
    for index in range(count):
        seen[labels[index]] += 1
        if seen[labels[index]] <= per_class:
            kept.append(index)
    size = height * width
    chosen = b"".join(images[i * size : (i + 1) * size] for i in kept)
    write(f"{part}-images-idx3-ubyte.gz", (len(kept), height, width), chosen)
    write(f"{part}-labels-idx1-ubyte.gz", (len(kept),), bytes(labels[i] for i in kept))
    print(part, len(kept), "images")
PYTHON
