#!/usr/bin/env python3
"""Writes operations.safetensors beside this file: what Pillow makes of small pictures by the operations of RandAugment.

Usage: pip install pillow numpy; python3 operations.py
Names: `NAME` is a picture; `NAME|operation|arguments...` is what becomes of it. Warps name their filter and fill with FILL.
"""
import json, pathlib, struct
import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)
rng = np.random.default_rng(11)
tensors = {}


def waves(width, height, low, high):
    y, x = np.mgrid[0:height, 0:width]
    planes = [np.sin(x / (2.0 + c)) * np.cos(y / (3.0 - c * 0.5)) * 0.5 + 0.5 for c in range(3)]
    noise = rng.uniform(-0.2, 0.2, (height, width, 3))
    return np.clip(low + (np.stack(planes, -1) + noise) * (high - low), 0, 255).astype(np.uint8)


flat = waves(9, 9, 0, 255)
flat[..., 1] = 77  # a channel of one value, and one of two
flat[..., 2] = np.where(flat[..., 2] > 128, 200, 10)
pictures = {
    "full": waves(18, 13, 0, 255),
    "dim": waves(15, 15, 60, 120),
    "large": waves(36, 30, 20, 230),
    "flat": flat,
    "thin": waves(2, 7, 0, 255),
}


def put(name, image):
    tensors[name] = np.asarray(image)


def tables(name, image):
    put(f"{name}|autocontrast", ImageOps.autocontrast(image))
    put(f"{name}|equalize", ImageOps.equalize(image))
    put(f"{name}|invert", ImageOps.invert(image))
    for bits in (1, 4, 8):
        put(f"{name}|posterize|{bits}", ImageOps.posterize(image, bits))
    for threshold in (0, 100, 256):
        put(f"{name}|solarize|{threshold}", ImageOps.solarize(image, threshold))
    lut = [min(255, i + 99) if i < 128 else i for i in range(256)]
    put(f"{name}|solarize_add|99|128", image.point(lut * 3))
    for kind in ("Color", "Contrast", "Brightness", "Sharpness"):
        for factor in (0.1, 0.55, 1.0, 1.9):
            put(f"{name}|{kind.lower()}|{factor}", getattr(ImageEnhance, kind)(image).enhance(factor))


def warps(name, image, few):
    for filter, code in (("nearest", 0), ("bilinear", 2), ("bicubic", 3)):
        def affine(operation, matrix, *arguments):
            words = "|".join(map(str, (operation, filter) + arguments))
            put(f"{name}|{words}", image.transform(image.size, Image.AFFINE, matrix, resample=code, fillcolor=FILL))

        for degrees in (27.3, -135) if few else (-30, 4.9, 27.3, 90, 180, 270, -135):
            put(f"{name}|rotate|{filter}|{degrees}", image.rotate(degrees, resample=code, fillcolor=FILL))
        for factor in (0.27,) if few else (-0.3, 0.27, 0.99):
            affine("shear_x", (1, factor, 0, 0, 1, 0), factor)
            affine("shear_y", (1, 0, 0, factor, 1, 0), factor)
        for pixels in (-3.6,) if few else (-3.6, 5.0, 0.45):
            affine("translate_x", (1, 0, pixels, 0, 1, 0), pixels)
            affine("translate_y", (1, 0, 0, 0, 1, pixels), pixels)


for name, array in pictures.items():
    image = Image.fromarray(array)
    put(name, image)
    if name != "large":
        tables(name, image)
    warps(name, image, name not in ("full", "thin"))
put("large|equalize", ImageOps.equalize(Image.fromarray(pictures["large"])))
put("large|sharpness|1.9", ImageEnhance.Sharpness(Image.fromarray(pictures["large"])).enhance(1.9))

header, blob = {"__metadata__": {"pillow": PIL.__version__}}, b""
for name, value in tensors.items():
    data = np.ascontiguousarray(value).tobytes()
    header[name] = {"dtype": "U8", "shape": list(value.shape), "data_offsets": [len(blob), len(blob) + len(data)]}
    blob += data
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
target = pathlib.Path(__file__).with_name("operations.safetensors")
target.write_bytes(struct.pack("<Q", len(text)) + text + blob)
print(len(tensors), "tensors,", target.stat().st_size, "bytes")
