"""Magnitude pruning: which weights go. Run directly it prunes a checkpoint in one shot, for comparison:

    python prune.py MODEL_DIR OUT_DIR [--sparsity 0.5] [--per row|tensor]
"""
import argparse
import os

import torch

from model import load_checkpoint, save_checkpoint


def keep_mask(weight, sparsity, per):
    """True where a weight stays. Of each output row (or of the tensor) the given share with the smallest magnitude goes.

    Exact zeros are the smallest, so what was pruned before stays pruned as the share grows.
    """
    flat = weight.detach().abs() if per == 'row' else weight.detach().abs().reshape(1, -1)
    count = round(flat.shape[1] * sparsity)
    mask = torch.ones_like(flat, dtype=torch.bool)
    if count:
        mask.scatter_(1, flat.topk(count, dim=1, largest=False).indices, False)
    return mask.reshape(weight.shape)


def ramp(progress, final):
    """Sparsity at `progress` (0 to 1) of the ramp: cubic, fast while weights are easy to spare and slow near the end."""
    return final * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)


@torch.no_grad()
def prune(model, sparsity, per):
    """Zero the smallest weights of every linear layer; returns the masks."""
    masks = {}
    for name, weight in model.linear_weights().items():
        masks[name] = keep_mask(weight, sparsity, per)
        weight.mul_(masks[name])
    return masks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model_dir')
    parser.add_argument('out_dir')
    parser.add_argument('--sparsity', type=float, default=0.5)
    parser.add_argument('--per', choices=['row', 'tensor'], default='row')
    args = parser.parse_args()
    model = load_checkpoint(args.model_dir)
    prune(model, args.sparsity, args.per)
    save_checkpoint(model, os.path.join(args.model_dir, 'tokenizer.json'), args.out_dir)


if __name__ == '__main__':
    main()
