"""Seeded random CLIP models of full size, written in the formats in which official weights are published.

    python make.py OUT [--models ViT-B/32 RN50] [--seed 0]

For each model OUT/<model>/ gets
    openai.pt          the TorchScript archive of OpenAI's own class, in half precision as published
    state_dict.pt      its state dict, as training scripts save it
    open_clip/         open_clip's folder: open_clip_config.json and safetensors
    hugging_face/      transformers' folder: config.json, tokenizer.json, preprocessor_config.json and safetensors
    reference.safetensors   a seeded batch and the features that each library computes for it in single precision

All of them hold the same numbers, each representable in half precision. Biases, norms and running statistics are drawn
too, so that two tensors exchanged cannot go unnoticed. Every library loads its file strictly before it is used.
"""

import argparse
import importlib
import json
from pathlib import Path

import clip
import clip.model
import clip.simple_tokenizer
import open_clip
import torch
import transformers
from safetensors.torch import save_file

# A function of the package has the same name.
folders = importlib.import_module("open_clip.push_to_hf_hub")

# OpenAI's constructor arguments, of the published models.
TEXT = dict(context_length=77, vocab_size=49408, transformer_layers=12)
MODELS = {
    "ViT-B/32": dict(embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=32,
                     transformer_width=512, transformer_heads=8, **TEXT),
    "ViT-B/16": dict(embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=16,
                     transformer_width=512, transformer_heads=8, **TEXT),
    "ViT-L/14": dict(embed_dim=768, image_resolution=224, vision_layers=24, vision_width=1024, vision_patch_size=14,
                     transformer_width=768, transformer_heads=12, **TEXT),
    "RN50": dict(embed_dim=1024, image_resolution=224, vision_layers=(3, 4, 6, 3), vision_width=64,
                 vision_patch_size=None, transformer_width=512, transformer_heads=8, **TEXT),
}
OPEN_CLIP = {"ViT-B/32": "ViT-B-32-quickgelu", "ViT-B/16": "ViT-B-16-quickgelu", "ViT-L/14": "ViT-L-14-quickgelu",
             "RN50": "RN50-quickgelu"}
TEXTS = ["a photo of a cat", "a diagram", "Two dogs, running; one is 3 years old!", "naïve café"]


def randomise(model, generator):
    """Moves every tensor away from its start, to numbers that half precision holds exactly."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name == "logit_scale":
                tensor.fill_(2.6592)
            elif name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif name.endswith("bn3.weight"):
                # OpenAI starts these at zero, which would hide the branch before them.
                tensor.copy_(0.3 + 0.1 * noise)
            else:
                tensor.add_(0.01 * noise)
            tensor.copy_(tensor.half().float())


def hugging_face_names(weights, heads_width):
    """The state dict under transformers' names: its attention has three projections where OpenAI's has one."""
    renamed = {}
    blocks = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
              "attn.out_proj": "self_attn.out_proj"}
    others = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.ln_post.bias": "vision_model.post_layernorm.bias",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
        "logit_scale": "logit_scale",
    }
    for name, tensor in weights.items():
        if name in others:
            renamed[others[name]] = tensor
        elif name == "visual.proj":
            renamed["visual_projection.weight"] = tensor.T.contiguous()
        elif name == "text_projection":
            renamed["text_projection.weight"] = tensor.T.contiguous()
        else:
            tower, rest = ("vision_model", name[len("visual."):]) if name.startswith("visual.") else ("text_model", name)
            number, rest = rest[len("transformer.resblocks."):].split(".", 1)
            layer = f"{tower}.encoder.layers.{number}"
            module, parameter = rest.rsplit(".", 1)
            if parameter.startswith("in_proj_"):
                parts = tensor.chunk(3)
                for which, part in zip("qkv", parts):
                    kind = parameter[len("in_proj_"):]
                    renamed[f"{layer}.self_attn.{which}_proj.{kind}"] = part.contiguous()
            else:
                renamed[f"{layer}.{blocks[module]}.{parameter}"] = tensor
    return renamed


def write_openai(model, folder, image, ids):
    archive = clip.model.CLIP(**model.arguments)
    archive.load_state_dict(model.state_dict())
    archive.eval()
    clip.model.convert_weights(archive)
    for name, value in dict(input_resolution=model.arguments["image_resolution"], context_length=77,
                            vocab_size=49408).items():
        for module in [archive, archive.visual]:
            if hasattr(module, name):
                delattr(module, name)
        archive.register_buffer(name, torch.tensor(value))
    torch.jit.trace(archive, (image.half(), ids), check_trace=False).save(str(folder / "openai.pt"))
    torch.save(model.state_dict(), folder / "state_dict.pt")
    # OpenAI's own reader takes the archive back.
    read = torch.jit.load(str(folder / "openai.pt"), map_location="cpu").state_dict()
    again = clip.model.build_model(dict(read)).float()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def write_open_clip(model, name, folder):
    found = open_clip.create_model(OPEN_CLIP[name], precision="fp32").eval()
    found.load_state_dict(model.state_dict(), strict=True)
    config = dict(open_clip.get_model_config(OPEN_CLIP[name]))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in found.state_dict().items()},
              str(folder / folders.HF_SAFE_WEIGHTS_NAME))
    folders.save_config_for_hf(found, folder / folders.HF_CONFIG_NAME,
                                                model_config=config)
    return found


def tokenizer():
    """OpenAI's merges in the form in which transformers publishes them."""
    simple = clip.simple_tokenizer.SimpleTokenizer()
    merges = [f"{a} {b}" for a, b in simple.bpe_ranks]
    return transformers.CLIPTokenizer(vocab=dict(simple.encoder), merges=[tuple(m.split()) for m in merges])


def write_hugging_face(model, folder):
    a = model.arguments
    towers = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=a["embed_dim"])
    config = transformers.CLIPConfig(
        vision_config=dict(hidden_size=a["vision_width"], intermediate_size=4 * a["vision_width"],
                           num_hidden_layers=a["vision_layers"], num_attention_heads=a["vision_width"] // 64,
                           image_size=a["image_resolution"], patch_size=a["vision_patch_size"], **towers),
        text_config=dict(hidden_size=a["transformer_width"], intermediate_size=4 * a["transformer_width"],
                         num_hidden_layers=a["transformer_layers"], num_attention_heads=a["transformer_heads"],
                         vocab_size=a["vocab_size"], max_position_embeddings=a["context_length"],
                         bos_token_id=49406, eos_token_id=49407, **towers),
        projection_dim=a["embed_dim"],
    )
    found = transformers.CLIPModel(config).eval()
    found.load_state_dict(hugging_face_names(model.state_dict(), a), strict=True)
    found.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    return found


def write(name, out, seed):
    folder = out / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = clip.model.CLIP(**MODELS[name])
    model.arguments = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    randomise(model, generator)
    model.eval()
    image = torch.randn(2, 3, model.visual.input_resolution, model.visual.input_resolution, generator=generator)
    ids = clip.tokenize(TEXTS).int()
    write_openai(model, folder, image, ids)
    libraries = {"openai": model}
    libraries["open_clip"] = write_open_clip(model, name, folder / "open_clip")
    if MODELS[name]["vision_patch_size"]:
        libraries["hugging_face"] = write_hugging_face(model, folder / "hugging_face")
    tensors = {"image": image, "ids": ids}
    with torch.no_grad():
        for library, found in libraries.items():
            if library == "hugging_face":
                features = (found.get_image_features(image), found.get_text_features(ids))
                features = [f if torch.is_tensor(f) else f.pooler_output for f in features]
            else:
                features = found.encode_image(image), found.encode_text(ids)
            for kind, tensor in zip(("image_features", "text_features"), features):
                tensors[f"{library}.{kind}"] = tensor.float().contiguous()
                worst = (tensor - tensors[f"openai.{kind}"]).abs().max() / tensor.abs().max()
                print(f"{name} {library} {kind}: {tuple(tensor.shape)}, differs from OpenAI's class by {worst:.1e}")
                assert worst < 1e-4
    save_file(tensors, str(folder / "reference.safetensors"), metadata={"texts": json.dumps(TEXTS)})
    count = sum(p.numel() for p in model.parameters())
    print(f"{name}: {count:,} parameters written to {folder}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["ViT-B/32", "RN50"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.models:
        write(name, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
