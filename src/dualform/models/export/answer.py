"""Answers queries with a saved learner, without dualform.

It needs torch and transformers; for a classifier of words also scikit-learn, and for an adapter also peft.

    python answer.py "text of the query"            one argument for each field of the prompt
    python answer.py --rows queries.jsonl           one JSON object a line, with the fields of the prompt

Prints for each query one line of JSON: the answer, and the log-probability of each label in nats.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parent


class Answerer:
    """The saved learner."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "saved.json").read_text(encoding="utf-8"))
        self.labels: list[str] = self.facts["labels"]
        self.head: dict[str, Any] | None = self.facts["head"]
        if self.head is not None:
            self.tensors = load_file(folder / "classifier.safetensors")
        if self.head is None or self.head["reads"] != "words":
            self._load_model(folder)
        elif self.head["terms"]:
            from sklearn.feature_extraction.text import TfidfVectorizer

            self.words = TfidfVectorizer(**self._word_settings(self.head), vocabulary=self.head["terms"])
            self.words.idf_ = self.tensors["idf"].numpy()

    @staticmethod
    def _word_settings(head: dict[str, Any]) -> dict[str, Any]:
        settings = dict(head["settings"])
        settings["ngram_range"] = tuple(settings["ngram_range"])
        return settings

    def _load_model(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = self.facts["model"]
        source, more = model["source"] or str(folder), dict(model["arguments"])
        self.tokenizer = AutoTokenizer.from_pretrained(source, **more)
        dtype = getattr(torch, model["dtype"])
        self.model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **more).eval()
        if model["adapter"]:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(folder)).eval()

    def scores(self, fields: dict[str, str]) -> list[float]:
        """Log-probability of each label, nats."""
        with torch.no_grad():
            if self.head is not None:
                return self._classified(self.head, fields)
            prompt = self._prompt(fields)
            raw = self._read(prompt, self.facts["answers"])
        if self.facts["shift"] is not None:
            raw = (raw.log_softmax(-1) + torch.tensor(self.facts["shift"], dtype=raw.dtype)).log_softmax(-1)
        return [float(score) for score in raw]

    def _prompt(self, fields: dict[str, str]) -> list[int]:
        """Token ids of the demonstrations, if there are any, and the query."""
        text = self.facts["prompt"].format(**fields)
        if self.facts["chat"] is not None:
            messages = [*self.facts["chat"]["messages"], {"role": "user", "content": text}]
            arguments = self.facts["chat"]["arguments"]
            chat = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, **arguments
            )
            return list(chat["input_ids"])
        plain = {"split_special_tokens": True} if self.facts["split_special_tokens"] else {}
        return [*self.facts["prefix"], *self.tokenizer(text, add_special_tokens=False, **plain)["input_ids"]]

    def _read(self, prompt: list[int], answers: list[list[int]]) -> Tensor:
        """Mean log-probability of each answer's tokens; the prompt is read once for all answers of one token."""
        longer = {i: answer for i, answer in enumerate(answers) if len(answer) > 1}
        first = self._log_probabilities(prompt)[-1] if len(longer) < len(answers) else torch.empty(0)
        scores = {i: first[answer[0]] for i, answer in enumerate(answers) if i not in longer}
        for i, answer in longer.items():
            rows = self._log_probabilities(prompt + answer)[len(prompt) - 1 : -1]
            scores[i] = rows.gather(1, torch.tensor(answer)[:, None]).mean()
        return torch.stack([scores[i] for i in range(len(answers))])

    def _log_probabilities(self, ids: list[int]) -> Tensor:
        """Log-probabilities of every next token, `(token, vocabulary)`, float64."""
        logits: Tensor = self.model(input_ids=torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(-1).double()

    def _classified(self, head: dict[str, Any], fields: dict[str, str]) -> list[float]:
        if head["reads"] == "words":
            text = "\n".join(fields[name] for name in self.facts["fields"])
            n_terms = self.tensors["weight"].shape[1]
            row = self.words.transform([text]).toarray()[0] if n_terms else []
            features = torch.tensor(row, dtype=torch.float64).reshape(n_terms)
        else:
            features = self._hidden(head, self._prompt(fields))
        known = (self.tensors["weight"] @ features + self.tensors["bias"]).log_softmax(-1)
        scores = dict(zip(head["classes"], known.tolist(), strict=True))
        return [scores.get(label, -float("inf")) for label in range(len(self.labels))]

    def _hidden(self, head: dict[str, Any], prompt: list[int]) -> Tensor:
        ids = torch.tensor([prompt])
        if head["block"] is None:
            last: Tensor = self.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
            return last.float().double()
        kept: list[Tensor] = []
        hook = self.model.get_submodule(head["block"]).register_forward_hook(
            lambda block, given, output: kept.append(output[0] if isinstance(output, tuple) else output)
        )
        self.model(input_ids=ids)
        hook.remove()
        states = kept[-1].reshape(len(prompt), -1)
        return states[self.facts["n_opening"] :].float().mean(dim=0).double()

    def answer(self, fields: dict[str, str]) -> dict[str, Any]:
        """The label with the highest log-probability, and all of them; null for a label that cannot occur."""
        scores = self.scores(fields)
        named = dict(zip(self.labels, scores, strict=True))
        finite = {label: score if score > -float("inf") else None for label, score in named.items()}
        return {"answer": self.labels[max(range(len(scores)), key=scores.__getitem__)], "scores": finite}


def main(arguments: list[str]) -> None:
    """Answer the queries of the command line."""
    answerer = Answerer()
    names = answerer.facts["fields"]
    if len(arguments) == 2 and arguments[0] == "--rows":
        lines = Path(arguments[1]).read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
    elif len(arguments) == len(names) and arguments[0] not in ("-h", "--help"):
        rows = [dict(zip(names, arguments, strict=True))]
    else:
        sys.exit(f"Give {' and '.join(names)} as {len(names)} argument(s), or --rows FILE.jsonl.")
    for row in rows:
        print(json.dumps(answerer.answer(row), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
