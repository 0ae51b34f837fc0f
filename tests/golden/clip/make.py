"""Makes the cases of this folder from the official classes: OpenAI's (clip-anytorch 2.6.0) and open_clip 3.3.0.

    python tests/golden/clip/make.py        (tests/full_size_clip/requirements.txt names the packages)
"""

import json
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import clip.model
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
VIT = dict(embed_dim=16, image_resolution=32, vision_layers=2, vision_width=64, vision_patch_size=8, context_length=12,
           vocab_size=60, transformer_width=64, transformer_heads=1, transformer_layers=2)
RESNET = dict(embed_dim=12, image_resolution=64, vision_layers=[1, 2, 1, 1], vision_width=4, vision_patch_size=None,
              context_length=8, vocab_size=40, transformer_width=64, transformer_heads=1, transformer_layers=1)
GRADIENTS = ["ln_final.bias", "logit_scale", "positional_embedding", "text_projection", "token_embedding.weight",
             "transformer.resblocks.0.mlp.c_fc.bias", "visual.class_embedding", "visual.conv1.weight",
             "visual.ln_pre.weight", "visual.proj", "visual.transformer.resblocks.0.attn.in_proj_weight"]


def official(arguments, seed):
    """A model with every tensor away from its start."""
    torch.manual_seed(seed)
    model = clip.model.CLIP(**arguments).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand_like(tensor))
            elif name.endswith(("bn3.weight", "downsample.1.weight")):
                tensor.copy_(0.6 + 0.2 * torch.randn_like(tensor))
            elif tensor.is_floating_point() and tensor.dim() < 2 and name != "logit_scale":
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model


def write(name, tensors, metadata):
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, str(FOLDER / f"{name}.safetensors"), metadata=metadata)


def vit():
    model = official(VIT, 1)
    image = torch.randn(3, 3, 32, 32)
    text = torch.zeros(3, VIT["context_length"], dtype=torch.int32)
    for row, words in enumerate([[3, 17, 20], [41, 5, 9, 30, 2, 11], [8]]):
        text[row, : len(words) + 2] = torch.tensor([58, *words, 59])
    per_image, per_text = model(image, text)
    images, texts = model.encode_image(image), model.encode_text(text)
    labels = torch.arange(3)
    loss = (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2
    loss.backward()
    unit = F.normalize(texts[:2], dim=-1).mean(0)
    tensors = {f"w.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"grad.{k}": model.get_parameter(k).grad for k in GRADIENTS}
    tensors |= {"image": image, "text": text, "out.image_features": images, "out.text_features": texts,
                "out.logits_per_image": per_image, "out.logits_per_text": per_text, "out.infonce_loss": loss,
                "out.ensemble_weight_first2_texts": unit / unit.norm()}
    write("openai_vit", tensors, {"config": json.dumps(VIT)})
    same_weights(model, image, text)


def same_weights(official, image, text):
    tensors = {"image": image, "text": text}
    a = VIT
    for name, quick in [("gelu", False), ("quickgelu", True)]:
        model = open_clip.CLIP(
            a["embed_dim"], quick_gelu=quick,
            vision_cfg=dict(layers=a["vision_layers"], width=a["vision_width"], patch_size=a["vision_patch_size"],
                            image_size=a["image_resolution"], head_width=64),
            text_cfg=dict(context_length=a["context_length"], vocab_size=a["vocab_size"], heads=a["transformer_heads"],
                          width=a["transformer_width"], layers=a["transformer_layers"])).eval()
        model.load_state_dict(official.state_dict(), strict=True)
        images, texts, scale = model(image, text)
        tensors |= {f"image_features_normalized_{name}": images, f"text_features_normalized_{name}": texts}
    tensors = {"out." + k if k not in ("image", "text") else k: v for k, v in tensors.items()}
    tensors["out.logit_scale_exp"] = scale
    write("open_clip_gelu_same_weights", tensors, {"note": "open_clip CLIP; weights and config of openai_vit.safetensors"})


def resnet():
    model = official(RESNET, 2)
    tower, image = model.visual, torch.randn(2, 3, 64, 64)
    kept = {}
    for name in ["avgpool", "layer1", "layer2", "layer3", "layer4"]:
        getattr(tower, name).register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
    features = tower(image)
    seed = torch.randn_like(features)
    (features * seed).sum().backward()
    tensors = {f"w.visual.{k}": v for k, v in tower.state_dict().items() if "num_batches" not in k}
    # A bias of the keys shifts all scores of a row alike: its gradient is rounding alone.
    named = [(k, v) for k, v in tower.named_parameters() if v.numel() < 5000 and k != "attnpool.k_proj.bias"]
    tensors |= {f"grad.visual.{k}": v.grad for k, v in named}
    tensors |= {"image": image, "grad_seed_vector": seed, "out.image_features": features, "out.stem": kept["avgpool"],
                "out.layer1_mean": kept["layer1"].mean((2, 3)), "out.layer2": kept["layer2"],
                "out.layer3": kept["layer3"], "out.layer4": kept["layer4"]}
    write("openai_modified_resnet", tensors, {"config": json.dumps(RESNET), "heads": str(tower.attnpool.num_heads)})


vit()
resnet()
