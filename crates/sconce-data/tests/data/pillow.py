#!/usr/bin/env python3
"""Writes pillow.safetensors beside this file: what Pillow makes of png files of every mode.

Usage: pip install pillow numpy; python3 pillow.py
Names: `png.MODE` the file, `rgb.MODE` its convert("RGB"), `resize.MODE.FILTER.WxH` resized in its own mode and
then converted, `region.FILTER.L,T,R,B.WxH` a part of the RGB picture, `webp.MODE` and `webp_rgb.MODE` lossless webp.
The metadata holds Pillow's version, on which the order of the passes depends.
"""
import io, json, pathlib, struct, zlib
import numpy as np
import PIL
from PIL import Image

rng = np.random.default_rng(7)
W, H = 23, 17


def smooth(channels, top=255):
    """Waves and noise: structure for the filters, and extremes that overshoot."""
    y, x = np.mgrid[0:H, 0:W]
    planes = [np.sin(x / (2.0 + c)) * np.cos(y / (3.0 - c * 0.5)) * 0.6 + 0.5 for c in range(channels)]
    noise = rng.uniform(-0.3, 0.3, (H, W, channels))
    return np.clip((np.stack(planes, -1) + noise) * top, 0, top)


def png(depth, colour, rows, palette=None, transparency=None):
    """A png file from packed rows."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, depth, colour, 0, 0, 0))
    if palette is not None:
        out += chunk(b"PLTE", palette)
    if transparency is not None:
        out += chunk(b"tRNS", transparency)
    return out + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")


def packed(values, depth):
    """Rows of `depth`-bit samples."""
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return [np.packbits(row.reshape(-1)).tobytes() for row in bits]


def rows8(a):
    return [row.tobytes() for row in a.astype(np.uint8)]


def rows16(a):
    return [row.astype(">u2").tobytes() for row in a]


grey, grey_alpha, rgb, rgba = (smooth(c) for c in (1, 2, 3, 4))
# Fully transparent and fully opaque pixels are special cases of premultiplication.
for a in (grey_alpha, rgba):
    a[..., -1][rng.random((H, W)) < 0.2] = 0
    a[..., -1][rng.random((H, W)) < 0.2] = 255
colours = rng.integers(0, 256, 3 * 16, dtype=np.uint8).tobytes()
wide = smooth(1, 600)[..., 0]
files = {
    "l1": png(1, 0, packed(rng.integers(0, 2, (H, W)), 1)),
    "l2": png(2, 0, packed(rng.integers(0, 4, (H, W)), 2)),
    "l4": png(4, 0, packed(rng.integers(0, 16, (H, W)), 4)),
    "l8": png(8, 0, rows8(grey)),
    "l8_trns": png(8, 0, rows8(grey), transparency=struct.pack(">H", int(grey.astype(np.uint8)[3, 4, 0]))),
    "l16": png(16, 0, rows16(wide)),
    "la8": png(8, 4, rows8(grey_alpha)),
    "la16": png(16, 4, rows16(grey_alpha * 257)),
    "rgb8": png(8, 2, rows8(rgb)),
    "rgb8_trns": png(8, 2, rows8(rgb), transparency=struct.pack(">HHH", *map(int, rgb.astype(np.uint8)[5, 6]))),
    "rgb16": png(16, 2, rows16(rgb * 257)),
    "rgba8": png(8, 6, rows8(rgba)),
    "rgba16": png(16, 6, rows16(rgba * 257)),
    "p4": png(4, 3, packed(rng.integers(0, 16, (H, W)), 4), palette=colours),
    "p8_trns": png(8, 3, rows8(rng.integers(0, 16, (H, W))), palette=colours, transparency=bytes(range(0, 160, 10))),
}
filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
tensors = {}


def put(name, image):
    tensors[name] = np.asarray(image.convert("RGB"))


for name, data in files.items():
    image = Image.open(io.BytesIO(data))
    tensors[f"png.{name}"] = np.frombuffer(data, np.uint8)
    put(f"rgb.{name}", image)
    # 16-bit grey is resized in 16 bits there; here it is 8-bit from the start.
    if name != "l16":
        for f in ["bicubic"] if name != "rgb8" else filters:
            for w, h in [(11, 9), (40, 31)] if name != "rgb8" else [(11, 9), (40, 31), (23, 5), (7, 17), (40, 4), (3, 40)]:
                put(f"resize.{name}.{f}.{w}x{h}", image.resize((w, h), filters[f]))
rgb_image = Image.open(io.BytesIO(files["rgb8"]))
for f in filters:
    for box in [(2, 3, 20, 11), (0.5, 1.25, 22.75, 16.5), (5, 5, 8, 8)]:
        for w, h in [(11, 9), (18, 8)]:
            put(f"region.{f}.{','.join(map(str, box))}.{w}x{h}", rgb_image.resize((w, h), filters[f], box))
for mode in ["rgb8", "rgba8"]:
    out = io.BytesIO()
    image = Image.open(io.BytesIO(files[mode]))
    image.save(out, "WEBP", lossless=True, exact=True)
    tensors[f"webp.{mode}"] = np.frombuffer(out.getvalue(), np.uint8)
    put(f"webp_rgb.{mode}", Image.open(out))

header, blob = {"__metadata__": {"pillow": PIL.__version__}}, b""
for name, value in tensors.items():
    data = np.ascontiguousarray(value).tobytes()
    header[name] = {"dtype": "U8", "shape": list(value.shape), "data_offsets": [len(blob), len(blob) + len(data)]}
    blob += data
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
target = pathlib.Path(__file__).with_name("pillow.safetensors")
target.write_bytes(struct.pack("<Q", len(text)) + text + blob)
print(len(tensors), "tensors,", target.stat().st_size, "bytes")
