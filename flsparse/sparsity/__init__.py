"""Sparsity: magnitude pruning, masks, Powerpropagation, activation pruning."""

from flsparse.sparsity.masks import (
    default_prunable,
    layer_sparsity,
    mask_iou,
    match_prunable,
    prune_global,
    prune_lamp,
    prune_per_layer,
    regrowth,
    sparsity_of,
)
from flsparse.sparsity.outputs import check_outputs
from flsparse.sparsity.powerprop import inverse_power, power, spectral_exponent
from flsparse.sparsity.ramp import sparsity_ramp
from flsparse.sparsity.soft_threshold import soft_threshold
from flsparse.sparsity.sparsify import (
    begin_fit,
    check_layers,
    export_dense,
    is_sparsified,
    layer_densities,
    prunable_names,
    sparsify,
)
from flsparse.sparsity.topk import kept_count, magnitude_threshold, top_k

__all__ = [
    "begin_fit",
    "check_layers",
    "check_outputs",
    "default_prunable",
    "export_dense",
    "inverse_power",
    "is_sparsified",
    "kept_count",
    "layer_densities",
    "layer_sparsity",
    "magnitude_threshold",
    "mask_iou",
    "match_prunable",
    "power",
    "prunable_names",
    "prune_global",
    "prune_lamp",
    "prune_per_layer",
    "regrowth",
    "soft_threshold",
    "sparsify",
    "sparsity_of",
    "sparsity_ramp",
    "spectral_exponent",
    "top_k",
]
