"""Held-out perplexity, sparsity and sample stories of a checkpoint:  python evaluate.py TEXT_DIR MODEL_DIR...

Perplexity is per token over whole stories, each read from its <s> on; its tokens are scored, <s> itself is not, the end mark is.
"""
import argparse
import math
import os

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from model import BOS, EOS, load_checkpoint

PROMPTS = ['Once upon a time', 'One day, a little girl named Lily', 'Tom and his dog', 'The cat was sad because']


@torch.no_grad()
def mean_loss(model, stories):
    """Mean negative log likelihood a token, f32."""
    longest = model.shape.max_position_embeddings
    total = count = 0
    # Stories of like length go together, so that little of a batch is padding.
    order = sorted(stories, key=len)
    for start in range(0, len(order), 8):
        group = [story[:longest + 1] for story in order[start:start + 8]]
        rows = np.full((len(group), max(map(len, group))), -1, np.int64)
        for row, story in zip(rows, group):
            row[:len(story)] = story
        rows = torch.from_numpy(rows)
        logits = model(rows[:, :-1].clamp(min=0))
        total += F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=-1, reduction='sum').item()
        count += (rows[:, 1:] >= 0).sum().item()
    return total / count


@torch.no_grad()
def write_story(model, tokenizer, prompt, tokens, temperature=0.0, seed=1):
    """Go on from a prompt: greedy, or drawn at a temperature."""
    draw = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    assert ids[0] == BOS
    while len(ids) < min(tokens, model.shape.max_position_embeddings):
        logits = model(torch.tensor([ids]))[0, -1]
        if temperature:
            next_id = torch.multinomial(F.softmax(logits / temperature, -1), 1, generator=draw).item()
        else:
            next_id = logits.argmax().item()
        if next_id == EOS:
            break
        ids.append(next_id)
    return tokenizer.decode(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('text_dir')
    parser.add_argument('model_dir', nargs='+')
    parser.add_argument('--tokens', type=int, default=200, help='length of the sample stories, 0 for none')
    parser.add_argument('--temperature', type=float, default=0.0, help='0 is greedy')
    args = parser.parse_args()
    _, held, _ = data.load_stories(args.text_dir)
    for folder in args.model_dir:
        model = load_checkpoint(folder).eval()
        tokenizer = Tokenizer.from_file(os.path.join(folder, 'tokenizer.json'))
        weights = model.linear_weights().values()
        zeros, total = sum((weight == 0).sum().item() for weight in weights), sum(weight.numel() for weight in weights)
        outside = sum((weight == 0).sum().item() for weight in model.parameters()) - zeros
        print(f'== {folder}: {sum(weight.numel() for weight in model.parameters())} parameters, '
              f'{100 * zeros / total:.2f} % of {total} linear weights are zero, {outside} zeros elsewhere')
        for name, stories in held.items():
            loss = mean_loss(model, data.encode(tokenizer, stories))
            print(f'{name}: {len(stories)} held-out stories, loss {loss:.4f}, perplexity {math.exp(loss):.2f}')
        for prompt in PROMPTS if args.tokens else []:
            print('>', write_story(model, tokenizer, prompt, args.tokens, args.temperature))


if __name__ == '__main__':
    main()
