"""Makes the cases beside this file with JAX, whose "SAME" padding is TensorFlow's own, in double precision.

Run: pip install jax safetensors && python make.py
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

jax.config.update("jax_enable_x64", True)

STAGES = [(1, 3, 1, 1, 8), (2, 3, 2, 4, 12), (2, 5, 2, 4, 16), (1, 3, 1, 4, 24)]
KEYS = ("depth", "kernel_size", "stride", "expand_ratio", "channels")
STEM, HEAD, CLASSES = 8, 32, 10


def blocks():
    """Number, input, output, kernel, stride, expansion of every block."""
    number, width = 0, STEM
    for depth, kernel, stride, expand, channels in STAGES:
        for index in range(depth):
            yield number, width, channels, kernel, stride if index == 0 else 1, expand
            number, width = number + 1, channels


def weights(rng):
    out = {}

    def conv(name, o, i, k):
        out[name + ".weight"] = rng.normal(0, (2 / (i * k * k)) ** 0.5, (o, i, k, k))

    def norm(name, c):
        out[name + ".weight"] = rng.uniform(0.5, 1.5, c)
        out[name + ".bias"] = rng.normal(0.3, 0.3, c)
        out[name + ".running_mean"] = rng.normal(0, 0.3, c)
        out[name + ".running_var"] = rng.uniform(0.3, 1.5, c)

    conv("_conv_stem", STEM, 3, 3)
    norm("_bn0", STEM)
    for n, i, o, k, _, e in blocks():
        at = f"_blocks.{n}."
        if e != 1:
            conv(at + "_expand_conv", i * e, i, 1)
            norm(at + "_bn0", i * e)
        conv(at + "_depthwise_conv", i * e, 1, k)
        norm(at + "_bn1", i * e)
        conv(at + "_project_conv", o, i * e, 1)
        norm(at + "_bn2", o)
    conv("_conv_head", HEAD, STAGES[-1][-1], 1)
    norm("_bn1", HEAD)
    out["_fc.weight"] = rng.normal(0, 0.3, (CLASSES, HEAD))
    out["_fc.bias"] = rng.normal(0, 0.3, CLASSES)
    return {name: value.astype(np.float32) for name, value in out.items()}


def forward(w, xs, padding, eps, train):
    """Logits, taps, and the running statistics after the step."""
    taps, after = {}, {}

    def conv(name, xs, stride=1, groups=1):
        k = w[name + ".weight"].shape[2]
        pad = "SAME" if padding == "same" else [(k // 2, k // 2)] * 2
        ys = jax.lax.conv_general_dilated(
            xs, w[name + ".weight"], (stride, stride), pad, feature_group_count=groups,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )
        taps[name + ".in"], taps[name + ".out"] = xs, ys
        return ys

    def norm(name, xs):
        mean, var = w[name + ".running_mean"], w[name + ".running_var"]
        if train:
            n = xs.shape[0] * xs.shape[2] * xs.shape[3]
            moved = (xs.mean((0, 2, 3)), xs.var((0, 2, 3)))
            after[name + ".running_mean"] = 0.99 * mean + 0.01 * moved[0]
            after[name + ".running_var"] = 0.99 * var + 0.01 * moved[1] * n / (n - 1)
            mean, var = moved
        scale = w[name + ".weight"] / jnp.sqrt(var + eps)
        ys = (xs - mean[:, None, None]) * scale[:, None, None] + w[name + ".bias"][:, None, None]
        taps[name + ".out"] = ys
        return ys

    act = lambda xs: jnp.clip(xs, 0, 6)
    xs = act(norm("_bn0", conv("_conv_stem", xs, 2)))
    for n, i, o, k, s, e in blocks():
        at = f"_blocks.{n}."
        ys = xs
        if e != 1:
            ys = act(norm(at + "_bn0", conv(at + "_expand_conv", ys)))
        ys = act(norm(at + "_bn1", conv(at + "_depthwise_conv", ys, s, i * e)))
        ys = norm(at + "_bn2", conv(at + "_project_conv", ys))
        ys = xs + ys if s == 1 and i == o else ys
        taps[f"_blocks.{n}.in"], taps[f"_blocks.{n}.out"] = xs, ys
        xs = ys
    xs = act(norm("_bn1", conv("_conv_head", xs)))
    pooled = xs.mean((2, 3))
    logits = pooled @ w["_fc.weight"].T + w["_fc.bias"]
    return logits, (taps, after)


def timm(name):
    """timm's name of a tensor."""
    module, rest = name.split(".", 1)
    if module != "_blocks":
        names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
        return f"{names[module]}.{rest}"
    number, module, kind = rest.split(".")
    places = [(s, i) for s, stage in enumerate(STAGES) for i in range(stage[0])]
    s, i = places[int(number)]
    wide = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    wide.update({"_project_conv": "conv_pwl", "_bn2": "bn3"})
    slim = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"blocks.{s}.{i}.{(slim if STAGES[s][3] == 1 else wide)[module]}.{kind}"


def case(name, seed, padding, eps, size, train=False, rename=None, taps=(), params=()):
    folder = pathlib.Path(__file__).parent / name
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    w = weights(rng)
    xs = rng.normal(0, 1, size).astype(np.float32)
    cotangent = rng.normal(0, 1, (size[0], CLASSES)).astype(np.float32)
    double = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)

    def loss(w, xs):
        logits, rest = forward(w, xs, padding, eps, train)
        return (logits * cotangent).sum(), (logits, rest)

    (_, (logits, (seen, after))), (dw, dx) = jax.value_and_grad(loss, (0, 1), has_aux=True)(double(w), double(xs))
    called = rename or (lambda name: name)
    f32 = lambda a: np.asarray(a, np.float32)
    io = {"input": xs, "cotangent": cotangent, "output": f32(logits), "grad.input": f32(dx)}
    io |= {"output_f64": np.asarray(logits), "grad.input_f64": np.asarray(dx)}
    io |= {f"mid.{tap}": f32(seen[tap]) for tap in taps}
    io |= {f"grad.param.{called(p)}": f32(dw[p]) for p in params}
    save_file(io, folder / "io.safetensors")
    save_file({called(k): v for k, v in w.items()}, folder / "weights.safetensors")
    if train:
        save_file({f"after.{called(k)}": f32(v) for k, v in after.items()}, folder / "after.safetensors")
    config = {
        "stages": [dict(zip(KEYS, stage)) for stage in STAGES],
        "stem": STEM, "head": HEAD, "num_classes": CLASSES, "padding": padding, "bn_eps": eps,
        "img_size": list(size[2:]), "drop_rate": 0.0, "drop_path_rate": 0.0,
    }
    document = {
        "system": f"efficientnet_lite/{name}", "config": config, "seed": seed, "mode": "train" if train else "eval",
        "notes": "JAX in double precision; see make.py", "loss": "sum(output * cotangent)",
    }
    (folder / "config.json").write_text(json.dumps(document, indent=1) + "\n")


PARAMS = ("_conv_stem.weight", "_blocks.1._depthwise_conv.weight", "_blocks.3._bn1.bias", "_bn1.weight", "_fc.weight")
# Odd and even sides at every stride.
case("same", 1, "same", 1e-3, (2, 3, 37, 30), params=PARAMS, taps=(
    "_conv_stem.out", "_blocks.1.out", "_blocks.3._depthwise_conv.out", "_blocks.4.in", "_blocks.4.out", "_conv_head.out",
))
case("symmetric", 2, "symmetric", 1e-5, (2, 3, 37, 30), rename=timm, params=PARAMS)
case("train_mode", 3, "same", 1e-3, (3, 3, 24, 32), train=True, params=PARAMS)
