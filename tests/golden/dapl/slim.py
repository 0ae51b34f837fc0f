"""Makes this folder from the full goldens of DAPL: `python3 slim.py FULL_FOLDER`. Needs NumPy.

The image tower and the pictures give way to the features they make, and the second case takes the text tower of the first, which
is the same. All references stay as the official code gave them.
"""

import json
import math
import pathlib
import struct
import sys

import numpy as np

TYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32}
HERE = pathlib.Path(__file__).parent


def read(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, data = json.loads(data[8 : 8 + size]), data[8 + size :]
    metadata = header.pop("__metadata__")
    slices = {k: data[slice(*v["data_offsets"])] for k, v in header.items()}
    return metadata, {k: np.frombuffer(slices[k], TYPES[v["dtype"]]).reshape(v["shape"]) for k, v in header.items()}


def write(path, metadata, tensors):
    names = {np.dtype(v): k for k, v in TYPES.items()}
    header, at = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]


def features(images, w, heads, layers):
    """OpenAI's vision transformer in double precision."""
    w = {k.removeprefix("w.visual."): v.astype(np.float64) for k, v in w.items() if k.startswith("w.visual.")}
    kernel = w["conv1.weight"]
    (width, _, side, _), (batch, _, size, _) = kernel.shape, images.shape
    n = size // side
    patches = images.astype(np.float64).reshape(batch, 3, n, side, n, side).transpose(0, 2, 4, 1, 3, 5)
    tokens = patches.reshape(batch, n * n, -1) @ kernel.reshape(width, -1).T
    start = np.broadcast_to(w["class_embedding"], (batch, 1, width))
    x = norm(np.concatenate([start, tokens], 1) + w["positional_embedding"], w, "ln_pre")
    for i in range(layers):
        block = {k.removeprefix(f"transformer.resblocks.{i}."): v for k, v in w.items()}
        qkv = norm(x, block, "ln_1") @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]
        q, k, v = (part.reshape(batch, -1, heads, width // heads).swapaxes(1, 2) for part in np.split(qkv, 3, -1))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(width // heads)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + mixed @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]
        hidden = norm(x, block, "ln_2") @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"]
        hidden = hidden / (1 + np.exp(-1.702 * hidden))
        x = x + hidden @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    return (norm(x[:, 0], w, "ln_post") @ w["proj"]).astype(np.float32)


full = pathlib.Path(sys.argv[1])
first = None
for name in ("dapl_csc", "dapl_unified"):
    metadata, tensors = read(full / f"{name}.safetensors")
    config = json.loads(metadata["config"])
    kept = {k: v for k, v in tensors.items() if not k.startswith(("image_", "w.visual."))}
    for part in ("source", "target"):
        images = tensors[f"image_{part}"]
        made = features(images, tensors, config["vision_width"] // 64, config["vision_layers"])
        kept[f"image_features_{part}"] = made
    if first is None:
        first = kept
    else:
        shared = [k for k in kept if k.startswith(("w.", "token_embedding_"))]
        assert all(np.array_equal(kept[k], first[k]) for k in shared)
        kept = {k: v for k, v in kept.items() if k not in shared}
        metadata["weights"] = "dapl_csc"
    write(HERE / f"{name}.safetensors", metadata, dict(sorted(kept.items())))
for name in ("loss_variants.json", "lr_per_iteration.json"):
    (HERE / name).write_bytes((full / name).read_bytes())
