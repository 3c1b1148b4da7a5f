"""Measures the three files in the real engine.

`python -m training.evaluate [--json] [--models DIR]`

Laws of this file:
* The cases are those of `corpus/held_out.yaml`; nothing here is trained on.
* A suite passes when its share of passed cases reaches its threshold; any suite below its
  threshold makes the exit status 1.
* The tokenizers of the files must cut every held-out sentence as the training tokenizers do.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from training import chat
from training.chat_corpus import ChatCorpus
from training.corpus_folder import CORPUS
from training.engine import post, serving
from training.sentences import train_encoder_tokenizer
from training.train import DEFAULT_OUT

THRESHOLDS = {
    "chat greedy": 0.9,
    "chat sampled": 0.85,
    "chat ends by itself": 1.0,
    "completion": 0.8,
    "chat tokens": 1.0,
    "similarity": 0.9,
    "encoder tokens": 1.0,
    "rerank": 0.85,
}
SAMPLED_TEMPERATURE = 0.8
Cases = dict[str, list[Any]]


@dataclass
class Suite:
    """The outcome of one suite."""

    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, good: bool, what: str) -> None:
        """Counts one case."""
        if good:
            self.passed += 1
        else:
            self.failures.append(what)

    @property
    def total(self) -> int:
        return self.passed + len(self.failures)

    @property
    def share(self) -> float:
        return self.passed / max(1, self.total)

    @property
    def good(self) -> bool:
        return self.share >= THRESHOLDS[self.name]


def _messages(case: dict[str, Any]) -> list[dict[str, str]]:
    said = [*case.get("said", []), case["ask"]]
    return [
        {"role": "user" if place % 2 == 0 else "assistant", "content": text}
        for place, text in enumerate(said)
    ]


def _has(text: str, words: list[str]) -> bool:
    return any(word.lower() in text.lower() for word in words)


def judge_chat(url: str, cases: Cases) -> list[Suite]:
    """Greedy and sampled answers, and whether they end by themselves."""
    greedy, sampled = Suite("chat greedy"), Suite("chat sampled")
    ends, completion = Suite("chat ends by itself"), Suite("completion")
    for number, case in enumerate(cases["chat"]):
        for suite, temperature in ((greedy, 0.0), (sampled, SAMPLED_TEMPERATURE)):
            body = {
                "messages": _messages(case),
                "temperature": temperature,
                "max_tokens": 120,
                "seed": number,
            }
            choice = post(f"{url}/v1/chat/completions", body)["choices"][0]
            answer = choice["message"]["content"]
            suite.check(_has(answer, case["any"]), f"{case['ask']} -> {answer}")
            ends.check(choice["finish_reason"] == "stop", f"{case['ask']} -> {answer}")
    for case in cases["completion"]:
        body = {"prompt": case["prompt"], "temperature": 0, "max_tokens": 60}
        text = post(f"{url}/v1/completions", body)["choices"][0]["text"]
        completion.check(_has(text, case["any"]), f"{case['prompt']} -> {text}")
    return [greedy, sampled, ends, completion]


def judge_tokens(name: str, url: str, tokenizer: Tokenizer, texts: list[str]) -> Suite:
    """Whether the engine cuts every text as the training did."""
    suite = Suite(name)
    for text in texts:
        found = post(f"{url}/tokenize", {"content": text, "add_special": False})["tokens"]
        suite.check(found == tokenizer.encode(text).ids, text)
    return suite


def judge_similarity(url: str, cases: Cases) -> Suite:
    """Whether the near sentence is nearer than the far one."""
    suite = Suite("similarity")
    for triple in cases["similarity"]:
        data = post(f"{url}/v1/embeddings", {"input": triple})["data"]
        first, near, far = (item["embedding"] for item in data)
        to_near, to_far = cosine(first, near), cosine(first, far)
        suite.check(to_near > to_far, f"{triple}: {to_near:.2f} against {to_far:.2f}")
    return suite


def cosine(first: list[float], second: list[float]) -> float:
    """The cosine of two vectors."""
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / (math.hypot(*first) * math.hypot(*second))


def judge_rerank(url: str, cases: Cases) -> Suite:
    """Whether the best document comes first."""
    suite = Suite("rerank")
    for case in cases["rerank"]:
        body = {"query": case["query"], "documents": case["documents"]}
        results = post(f"{url}/v1/rerank", body)["results"]
        top = max(results, key=lambda result: float(result["relevance_score"]))["index"]
        suite.check(top == case["best"], f"{case['query']} -> {case['documents'][top]}")
    return suite


def _texts(cases: Cases) -> list[str]:
    texts = [case["ask"] for case in cases["chat"]]
    texts += [text for triple in cases["similarity"] for text in triple]
    texts += [text for case in cases["rerank"] for text in [case["query"], *case["documents"]]]
    return [
        *texts,
        "I'm 42 years old,\n\n  isn't it?  ",
        "naïve café — “quoted” 3.14",
        "表情😀と日本語",
    ]


def evaluate(models: Path) -> list[Suite]:
    """Every suite."""
    cases: Cases = yaml.safe_load((CORPUS / "held_out.yaml").read_text(encoding="utf-8"))
    texts = _texts(cases)
    suites: list[Suite] = []
    with serving(models / "yard-chat.gguf", "chat") as url:
        suites += judge_chat(url, cases)
        tokenizer = chat.train_tokenizer(ChatCorpus())
        suites.append(judge_tokens("chat tokens", url, tokenizer, texts))
    with serving(models / "yard-embed.gguf", "embed") as url:
        suites.append(judge_similarity(url, cases))
        suites.append(judge_tokens("encoder tokens", url, train_encoder_tokenizer(), texts))
    with serving(models / "yard-rerank.gguf", "rerank") as url:
        suites.append(judge_rerank(url, cases))
    return suites


def _as_json(suites: list[Suite]) -> str:
    report = {
        suite.name: {
            "passed": suite.passed,
            "total": suite.total,
            "share": round(suite.share, 4),
            "threshold": THRESHOLDS[suite.name],
            "good": suite.good,
            "failures": suite.failures,
        }
        for suite in suites
    }
    return json.dumps(report, ensure_ascii=False, indent=2)


def _as_text(suites: list[Suite]) -> str:
    lines = []
    for suite in suites:
        mark = "ok  " if suite.good else "BAD "
        lines.append(f"{mark}{suite.name}: {suite.passed}/{suite.total}")
        lines += [f"      {failure}" for failure in suite.failures]
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures and reports."""
    parser = argparse.ArgumentParser(description="Measure the demonstration models of Modelyard.")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    parser.add_argument("--models", type=Path, default=DEFAULT_OUT, help="the folder of the files")
    arguments = parser.parse_args()
    suites = evaluate(arguments.models)
    show: Callable[[list[Suite]], str] = _as_json if arguments.json else _as_text
    print(show(suites))
    sys.exit(0 if all(suite.good for suite in suites) else 1)


if __name__ == "__main__":
    main()
