"""Public architectures, built small from their configurations with random weights, and a batch for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flsparse.tasks.torchvision_compat import import_torchvision


class Architecture(NamedTuple):
    """A model and its inputs: an image batch of this side, or named inputs."""

    make: Callable[[], nn.Module]
    batch: Callable[[], Any]


def images(side: int, *leading: int, channels: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(*leading or (4,), channels, side, side)


def torchvision_architectures() -> dict[str, Architecture]:
    models = import_torchvision("models")
    segmentation, video = import_torchvision("models.segmentation"), import_torchvision("models.video")
    convnext, maxvit = import_torchvision("models.convnext"), import_torchvision("models.maxvit")
    small: dict[str, Any] = {"num_classes": 10}
    block, bottleneck = models.resnet.BasicBlock, models.resnet.Bottleneck
    blocks = [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)]

    pooled = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3], "stride_q": [1, 2, 2], "stride_kv": [1, 2, 2]}
    mvit_blocks = [video.mvit.MSBlockConfig(2, 16, 32, **pooled), video.mvit.MSBlockConfig(2, 32, 32, **pooled)]

    def regnet() -> nn.Module:
        params = models.regnet.BlockParams.from_init_params(depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8)
        model: nn.Module = models.RegNet(params, **small)
        return model

    def maxvit_small() -> nn.Module:
        sizes = {"input_size": (64, 64), "stem_channels": 16, "partition_size": 2, "head_dim": 8}
        model: nn.Module = maxvit.MaxVit(
            **sizes, block_channels=[16, 32], block_layers=[1, 1], stochastic_depth_prob=0.1, **small
        )
        return model

    return {
        "ConvNeXt": Architecture(lambda: models.ConvNeXt(blocks, **small), images(32)),
        "DenseNet": Architecture(lambda: models.DenseNet(8, (2, 2, 2, 2), 16, **small), images(32)),
        "EfficientNet-B0": Architecture(lambda: models.efficientnet_b0(**small), images(32)),
        "GoogLeNet": Architecture(
            lambda: models.googlenet(weights=None, init_weights=False, aux_logits=False, **small), images(48)
        ),
        "LR-ASPP, MobileNet v3": Architecture(
            lambda: segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, **small), images(64, 2)
        ),
        "MaxViT": Architecture(maxvit_small, images(64)),
        "MC3, video": Architecture(lambda: video.mc3_18(**small), lambda: torch.randn(2, 3, 4, 32, 32)),
        "MNASNet 0.5": Architecture(lambda: models.mnasnet0_5(**small), images(32)),
        "MobileNet v2": Architecture(lambda: models.MobileNetV2(width_mult=0.25, **small), images(32)),
        "MobileNet v3 small": Architecture(lambda: models.mobilenet_v3_small(**small), images(32)),
        "RegNet": Architecture(regnet, images(32)),
        "ResNet": Architecture(lambda: models.ResNet(block, [1, 1, 1, 1], **small), images(32)),
        "ResNeXt": Architecture(
            lambda: models.ResNet(bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4, **small), images(32)
        ),
        "ShuffleNet v2": Architecture(lambda: models.shufflenet_v2_x0_5(**small), images(32)),
        "SqueezeNet": Architecture(lambda: models.squeezenet1_1(**small), images(48)),
        "Swin": Architecture(lambda: models.SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], **small), images(32)),
        "Swin v2": Architecture(
            lambda: models.SwinTransformer(
                [2, 2],
                24,
                [2, 2],
                [2, 4],
                [4, 4],
                block=models.swin_transformer.SwinTransformerBlockV2,
                downsample_layer=models.swin_transformer.PatchMergingV2,
                **small,
            ),
            images(32),
        ),
        "Swin 3D, video": Architecture(
            lambda: video.SwinTransformer3d([2, 4, 4], 24, [2, 2], [2, 4], [2, 4, 4], **small),
            lambda: torch.randn(2, 3, 4, 32, 32),
        ),
        "MViT, video": Architecture(
            lambda: video.MViT((32, 32), 4, mvit_blocks, True, False, True, True, **small),
            lambda: torch.randn(2, 3, 4, 32, 32),
        ),
        "ViT": Architecture(lambda: models.VisionTransformer(32, 8, 2, 2, 32, 64, **small), images(32)),
    }


def tokens(*names: str, vocabulary: int = 64) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randint(3, vocabulary, (4, 12)) for name in names or ("input_ids",)}


def hugging_face_architectures() -> dict[str, Architecture]:
    import_torchvision()  # in our way, before transformers does
    import transformers as hf

    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    text: dict[str, Any] = {**size, "vocab_size": 64, "max_position_embeddings": 32}
    picture: dict[str, Any] = {**size, "image_size": 32, "patch_size": 8}

    def built(kind: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            model: nn.Module = getattr(hf, kind)(getattr(hf, config)(**settings))
            return model

        return make

    audio: dict[str, Any] = {
        **size,
        "vocab_size": 16,
        "conv_dim": (16, 16),
        "conv_kernel": (10, 3),
        "conv_stride": (5, 2),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "mask_time_prob": 0.0,
        "layerdrop": 0.0,
    }
    gpt2: dict[str, Any] = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    t5: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    mamba: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    return {
        "ALBERT": Architecture(
            built("AlbertForSequenceClassification", "AlbertConfig", embedding_size=16, **text), tokens()
        ),
        "BERT, masked": Architecture(built("BertForMaskedLM", "BertConfig", **text), tokens()),
        "CLIP": Architecture(
            built("CLIPModel", "CLIPConfig", text_config=text, vision_config=picture, projection_dim=16),
            lambda: {**tokens()(), "pixel_values": images(32)()},
        ),
        "GPT-2": Architecture(built("GPT2LMHeadModel", "GPT2Config", **gpt2), tokens()),
        "Llama": Architecture(built("LlamaForCausalLM", "LlamaConfig", **text), tokens()),
        "Mamba": Architecture(built("MambaForCausalLM", "MambaConfig", **mamba), tokens()),
        "Mixtral": Architecture(
            built("MixtralForCausalLM", "MixtralConfig", num_key_value_heads=2, num_local_experts=4, **text), tokens()
        ),
        "T5": Architecture(
            built("T5ForConditionalGeneration", "T5Config", decoder_start_token_id=0, **t5),
            tokens("input_ids", "decoder_input_ids"),
        ),
        "ViT": Architecture(
            built("ViTForImageClassification", "ViTConfig", **picture), lambda: {"pixel_values": images(32)()}
        ),
        "wav2vec 2.0": Architecture(
            built("Wav2Vec2ForCTC", "Wav2Vec2Config", **audio), lambda: {"input_values": torch.randn(4, 800)}
        ),
    }
