"""Makes a model sparse, generates with it and writes it: ``python sparsify.py [MODEL [FOLDER]]``.

MODEL is a name or folder of Transformers; without one a small random model is made.
"""

import sys

import torch
import transformers

import sparamx.torch


def main() -> None:
    if len(sys.argv) > 1:
        model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
        prompt = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    else:
        config = transformers.LlamaConfig(
            hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, vocab_size=4096
        )
        model, tokenizer = transformers.LlamaForCausalLM(config).eval(), None
        prompt = torch.tensor([[1, 2, 3]])
    print(sparamx.torch.sparsify(model, sparsity=0.5))
    with torch.inference_mode():
        tokens = model.generate(prompt, max_new_tokens=20, do_sample=False)[0]
    print(tokenizer.decode(tokens) if tokenizer else tokens.tolist())
    if len(sys.argv) > 2:
        sparamx.torch.save(model, sys.argv[2])
        if tokenizer:
            tokenizer.save_pretrained(sys.argv[2])


if __name__ == "__main__":
    main()
