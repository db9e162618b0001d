"""Text in, tokens out: stories from TEXT_DIR, re-cased where needed, split, freed of duplicates, tokenized.

Run directly to see what is found and how well re-casing does:  python data.py TEXT_DIR
"""
import argparse
import collections
import os
import re

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from model import EOS

SEPARATOR = '<|endoftext|>'
HELD_OUT_SHARE = 50  # one story in fifty of each cased file, from its end
WORD = re.compile(r"[A-Za-z']+")


def squeeze(text):
    """What two copies of a story share whatever their case, spacing and punctuation."""
    return re.sub(r'[^a-z0-9]', '', text.lower())


def read(path):
    with open(path, encoding='utf8', errors='replace') as file:
        return file.read()


def is_lower(text):
    return not re.search(r'[A-Z]', text[:100_000])


def split_cased(text):
    """Stories are separated by the marker; without markers, one story a line."""
    parts = text.split(SEPARATOR) if SEPARATOR in text else text.split('\n')
    return [part.strip() for part in parts if len(part.strip()) > 80]


def split_lower(text):
    """In the lower-case file one newline ends a story and two end a paragraph; the cased text ends paragraphs with one."""
    parts = re.split(r'(?<!\n)\n(?!\n)', text)
    return [re.sub(r'\n\s*\n', '\n', part.strip()) for part in parts if len(part.strip()) > 80]


class Recaser:
    """Puts capitals back into lower-case text with what cased text of the same kind shows.

    A word inside a sentence gets the form it most often has there (names, "I"). The first letter of a sentence is
    raised; where a sentence begins is the hard part after a closing quote: after '."' a new one always begins, after
    '!"' and '?"' mostly the speech tag follows ('"Stop!" he said'), which is decided word by word from the cased text.
    """

    def __init__(self, stories):
        inside = collections.defaultdict(collections.Counter)
        after_speech = collections.defaultdict(collections.Counter)
        for story in stories:
            for match in re.finditer(r"(?<=[a-z,;] )[A-Za-z][A-Za-z']*", story):
                inside[match[0].lower()][match[0]] += 1
            for match in re.finditer(r"[!?][\"'] ([A-Za-z][A-Za-z']*) ([A-Za-z]+)", story):
                # Names are upper case either way and do not tell.
                for key in (match[1].lower(), (match[1].lower(), match[2].lower())):
                    after_speech[key][match[1][0].isupper()] += 1
        self.form = {word: count.most_common(1)[0][0] for word, count in inside.items()}
        self.starts = {key: count[True] > count[False] for key, count in after_speech.items()}

    def begins_sentence(self, before, word, following):
        """Whether `word` begins a sentence, given the text before it."""
        if not before.strip() or before.endswith('\n'):
            return True
        # A quote right before the word opens direct speech, and direct speech begins with a capital.
        if before.endswith(('"', " '")):
            return True
        trimmed = before.rstrip()
        if trimmed[-1] in '.!?':
            return True
        if trimmed[-1] == '"' and len(trimmed) > 1:
            if trimmed[-2] == '.':
                return True
            if trimmed[-2] in '!?':
                return self.starts.get((word, following), self.starts.get(word, True))
        return False

    def __call__(self, text):
        out, position = [], 0
        words = list(WORD.finditer(text))
        for index, match in enumerate(words):
            word = match[0]
            lead = word[:len(word) - len(word.lstrip("'"))]
            bare = word[len(lead):]
            out.append(text[position:match.start()])
            position = match.end()
            following = words[index + 1][0] if index + 1 < len(words) else ''
            form = self.form.get(bare, bare)
            if bare and self.begins_sentence(text[max(0, match.start() - 4):match.start()] + lead, bare, following):
                form = form[:1].upper() + form[1:]
            out.append(lead + form)
        out.append(text[position:])
        return ''.join(out)


def load_stories(folder):
    """(training stories, held-out stories, notes): what TEXT_DIR's *.txt files hold.

    Held out are the last 2 % of every cased training file, and files with "valid" in their name whole. A training story that
    equals a held-out or an earlier one (in letters and digits), or shares its first or last 60 of them, is dropped.
    """
    files = {name: read(os.path.join(folder, name)) for name in sorted(os.listdir(folder)) if name.endswith('.txt')}
    cased, lower, held = [], [], {}
    for name, text in files.items():
        if 'valid' in name:
            # The small excerpt of the validation split repeats its stories; one copy is enough.
            held[name] = list({squeeze(story): story for story in split_cased(text)}.values())
        elif is_lower(text):
            lower.append((name, split_lower(text)))
        else:
            stories = split_cased(text)
            count = max(20, len(stories) // HELD_OUT_SHARE)
            cased += stories[:-count]
            held[name] = stories[-count:]
    if not cased:
        raise SystemExit(f'{folder}: no cased story file (*.txt); see README.md for what to put there')
    recase = Recaser(cased)
    seen = set()
    for stories in held.values():
        for story in stories:
            key = squeeze(story)
            seen.update((key, key[:60], key[-60:]))
    train, notes = [], []
    for name, stories in [('cased', cased)] + [(name, stories) for name, stories in lower]:
        kept = 0
        for story in stories:
            key = squeeze(story)
            if key in seen or key[:60] in seen or key[-60:] in seen:
                continue
            # Only whole copies count as repeats among training stories: many stories begin and end alike.
            seen.add(key)
            train.append(story if name == 'cased' else recase(story))
            kept += 1
        notes.append(f'{name}: {len(stories)} stories, {len(stories) - kept} dropped as copies of held-out or earlier ones')
    return train, held, notes


def train_tokenizer(stories, path, vocab_size=4096):
    """Byte-level BPE; <s> (1) opens a text, <|endoftext|> (0) ends it."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(stories, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[SEPARATOR, '<s>'], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    tokenizer.save(path)


def encode(tokenizer, stories):
    """Token ids of each story, <s> first and <|endoftext|> last."""
    return [np.array(item.ids + [EOS], np.int64) for item in tokenizer.encode_batch(stories)]


class Batches:
    """Every story once an epoch, in an order drawn from (seed, epoch): batch n is a function of n, so a run can stop and resume."""

    def __init__(self, stories, batch, length, seed):
        self.stories, self.batch, self.length, self.seed = stories, batch, length, seed
        self.per_epoch = (sum(map(len, stories)) - 1) // (length * batch)
        self.epoch, self.rows = None, None
        if self.per_epoch == 0:
            raise SystemExit(f'too little text for one batch of {batch} x {length} tokens')

    def __getitem__(self, step):
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.stories))
            ids = np.concatenate([self.stories[i] for i in order])
            rows = self.per_epoch * self.batch
            # A row holds one token more than it trains on: the last one is only a target.
            self.rows = np.lib.stride_tricks.sliding_window_view(ids, self.length + 1)[::self.length][:rows]
            self.epoch = epoch
        return self.rows[index * self.batch:(index + 1) * self.batch]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('text_dir')
    args = parser.parse_args()
    train, held, notes = load_stories(args.text_dir)
    print('\n'.join(notes))
    print(len(train), 'training stories;', ', '.join(f'{len(stories)} held out of {name}' for name, stories in held.items()))
    recase = Recaser(train[:len(train) // 2])
    right = total = 0
    for story in [story for stories in held.values() for story in stories]:
        for original, guess in zip(WORD.findall(story), WORD.findall(recase(story.lower()))):
            right, total = right + (original == guess), total + 1
    print(f're-casing: {100 * right / total:.2f} % of {total} words of held-out stories come back as they were')


if __name__ == '__main__':
    main()
