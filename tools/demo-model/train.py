"""Train the story model, dense or pruned step by step; writes a Hugging Face folder, a loss curve, and a state to resume from.

    python train.py TEXT_DIR OUT_DIR --steps 1500                                    a dense model from nothing
    python train.py TEXT_DIR OUT_DIR --steps 500 --init DIR                          go on from a checkpoint
    python train.py TEXT_DIR OUT_DIR --steps 1500 --init DIR --sparsity 0.5 --teacher DIR   prune gradually, then train under the mask

Everything follows the step number, never the clock, so a run may be paused, or killed and started again with the same
command: it goes on from OUT_DIR/state.pt, losing at most --save-every steps.
"""
import argparse
import csv
import math
import os
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from evaluate import mean_loss
from model import Llama, Shape, load_checkpoint, save_checkpoint
from prune import prune, ramp

COLUMNS = ['step', 'tokens', 'cpu_seconds', 'learning_rate', 'sparsity', 'train_loss', 'held_out_loss', 'validation_loss']


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('text_dir', help='folder of *.txt story files; see README.md')
    parser.add_argument('out_dir')
    parser.add_argument('--steps', type=int, required=True)
    parser.add_argument('--init', help='checkpoint folder to start from (its tokenizer is kept)')
    parser.add_argument('--learning-rate', type=float, default=2e-3)
    parser.add_argument('--warmup', type=int, default=50, help='steps')
    parser.add_argument('--decay-from', type=float, default=0.5, help='share of the steps after which the rate falls, linearly, to 2 %%')
    parser.add_argument('--batch', type=int, default=8, help='rows of --length tokens a step')
    parser.add_argument('--length', type=int, default=512)
    parser.add_argument('--dropout', type=float, default=0.0)
    parser.add_argument('--sparsity', type=float, default=0.0, help='share of zeros in the linear layers at the end of the ramp')
    parser.add_argument('--ramp-end', type=float, default=0.4, help='share of the steps over which sparsity rises; then the mask is fixed')
    parser.add_argument('--prune-every', type=int, default=10, help='steps')
    parser.add_argument('--per', choices=['row', 'tensor'], default='row', help='what magnitudes are compared within')
    parser.add_argument('--teacher', help='dense checkpoint whose predictions the model also learns')
    parser.add_argument('--teacher-share', type=float, default=0.5, help='weight of the teacher in the loss')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--save-every', type=int, default=50, help='steps between evaluations, exports and saved states')
    return parser.parse_args()


def learning_rate(args, step):
    progress = step / args.steps
    decay = 1.0 if progress < args.decay_from else max(0.02, (1 - progress) / (1 - args.decay_from))
    return args.learning_rate * min(1.0, (step + 1) / args.warmup) * decay


def loss_of(model, teacher, teacher_share, rows):
    """(loss to descend, cross entropy on the text) for rows of tokens."""
    # bf16 multiplications with f32 weights and sums: a third faster than f32 where the CPU has bf16 instructions.
    with torch.autocast('cpu', torch.bfloat16):
        logits = model(rows[:, :-1]).flatten(0, 1)
    text_loss = F.cross_entropy(logits.float(), rows[:, 1:].flatten())
    if teacher is None:
        return text_loss, text_loss
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        wanted = teacher(rows[:, :-1]).flatten(0, 1)
    teacher_loss = F.kl_div(F.log_softmax(logits.float(), -1), F.log_softmax(wanted.float(), -1), reduction='batchmean', log_target=True)
    return (1 - teacher_share) * text_loss + teacher_share * teacher_loss, text_loss


def start_curve(path, step):
    """Keep the rows of the curve up to the step a run resumes from."""
    rows = []
    if step and os.path.exists(path):
        with open(path, encoding='utf8') as file:
            rows = [row for row in csv.DictReader(file) if int(row['step']) <= step]
    with open(path, 'w', encoding='utf8', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    return float(rows[-1]['cpu_seconds']) if rows else 0.0


def load_data(args, tokenizer_path):
    """The tokenizer, the batches to train on, and token lists to evaluate on by the column that gets their loss."""
    train, held, notes = data.load_stories(args.text_dir)
    print('\n'.join(notes), flush=True)
    if not args.init and not os.path.exists(tokenizer_path):
        data.train_tokenizer(train, tokenizer_path)
    tokenizer = Tokenizer.from_file(tokenizer_path)
    batches = data.Batches(data.encode(tokenizer, train), args.batch, args.length, args.seed)
    tests = {'held_out_loss': [], 'validation_loss': []}
    for name, stories in held.items():
        tests['validation_loss' if 'valid' in name else 'held_out_loss'] += data.encode(tokenizer, stories)
    print(f'{sum(map(len, batches.stories))} training tokens, {batches.per_epoch} steps an epoch', flush=True)
    return tokenizer, batches, tests


def optimizer_of(model, rate):
    """Weight decay is for matrices alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    return torch.optim.AdamW([dict(params=matrices, weight_decay=0.1), dict(params=norms, weight_decay=0.0)],
                             lr=rate, betas=(0.9, 0.95), fused=True)


def descend(model, optimizer, loss, masks):
    """A step of the optimizer that leaves pruned weights at zero."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if masks:
        for name, weight in model.linear_weights().items():
            weight.grad.mul_(masks[name])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if masks:
        # The optimizer's momentum still moves weights pruned a moment ago; the mask holds them at zero.
        with torch.no_grad():
            for name, weight in model.linear_weights().items():
                weight.mul_(masks[name])


def main():
    args = parse()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    os.makedirs(args.out_dir, exist_ok=True)

    tokenizer_path = os.path.join(args.init or args.out_dir, 'tokenizer.json')
    tokenizer, batches, tests = load_data(args, tokenizer_path)

    model = load_checkpoint(args.init, args.dropout) if args.init else Llama(Shape(vocab_size=tokenizer.get_vocab_size()), args.dropout)
    teacher = load_checkpoint(args.teacher).eval() if args.teacher else None
    optimizer = optimizer_of(model, args.learning_rate)
    step, masks, sparsity = 0, {}, 0.0
    state_path, curve_path = os.path.join(args.out_dir, 'state.pt'), os.path.join(args.out_dir, 'curve.csv')
    if os.path.exists(state_path):
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        step, masks, sparsity = state['step'], state['masks'], state['sparsity']
        torch.set_rng_state(state['random'])
        print('resuming from step', step, flush=True)
    cpu_before = start_curve(curve_path, step) - time.process_time()

    def report(train_loss):
        """Evaluate, write the curve, the state and (once the wanted sparsity is reached) the checkpoint."""
        model.eval()
        row = dict(step=step, tokens=step * args.batch * args.length, cpu_seconds=round(cpu_before + time.process_time()),
                   learning_rate=f'{learning_rate(args, step):.2e}', sparsity=f'{sparsity:.4f}', train_loss=f'{train_loss:.4f}')
        row.update({name: f'{mean_loss(model, stories):.4f}' if stories else '' for name, stories in tests.items()})
        model.train()
        print(row, flush=True)
        with open(curve_path, 'a', encoding='utf8', newline='') as file:
            csv.DictWriter(file, COLUMNS, lineterminator='\n').writerow(row)
        torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, masks=masks, sparsity=sparsity,
                        random=torch.get_rng_state()), state_path + '.partial')
        os.replace(state_path + '.partial', state_path)
        if sparsity == args.sparsity:
            save_checkpoint(model, tokenizer_path, args.out_dir)

    if step == 0:
        report(math.nan)
    recent = []
    ramp_steps = max(1, round(args.ramp_end * args.steps))
    while step < args.steps:
        if args.sparsity and step <= ramp_steps and (step % args.prune_every == 0 or step == ramp_steps):
            sparsity = ramp(step / ramp_steps, args.sparsity)
            masks = prune(model, sparsity, args.per)
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(args, step)
        loss, text_loss = loss_of(model, teacher, args.teacher_share, torch.from_numpy(batches[step].copy()))
        descend(model, optimizer, loss, masks)
        step += 1
        recent.append(text_loss.item())
        if step % args.save_every == 0 or step == args.steps:
            report(sum(recent) / len(recent))
            recent = []


if __name__ == '__main__':
    main()
