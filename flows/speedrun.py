"""The line: text in, a chat model out. Every station is cached, resumable and published."""

from flows.line import AnyLine, Made
from flows.line_flow import line_flow
from flows.parameters import RunParameters
from tasks.base_eval import base_eval
from tasks.benchmarks import benchmarks
from tasks.chat_eval_rl import chat_eval_rl
from tasks.chat_eval_sft import chat_eval_sft
from tasks.pretrain import pretrain
from tasks.report import report
from tasks.rl import rl
from tasks.sft import sft
from tasks.shards import shards
from tasks.tokenizer import tokenizer
from tasks.tokens import tokens


def follow(line: AnyLine[Made]) -> Made | None:
    """Run the line with these parameters; gives the chat model that was released."""
    text = line.make(shards)
    words = line.make(tokenizer, shards=text)
    ids = line.make(tokens, shards=text, tokenizer=words)
    tests = line.make(benchmarks)
    base = line.make(pretrain, tokens=ids, tokenizer=words)
    made = {"shards": text, "tokenizer": words, "tokens": ids, "pretrain": base}
    scores = line.make(base_eval, **made, benchmarks=tests)
    chat = line.make(sft, pretrain=base, tokenizer=words, shards=text, benchmarks=tests)
    before = line.make(chat_eval_sft, sft=chat, tokenizer=words, benchmarks=tests)
    better = line.make(rl, sft=chat, tokenizer=words, benchmarks=tests)
    after = line.make(chat_eval_rl, rl=better, tokenizer=words, benchmarks=tests)
    made |= {"base_eval": scores, "sft": chat, "chat_eval_sft": before}
    line.make(report, **made, rl=better, chat_eval_rl=after)
    return line.release(better)


speedrun = line_flow("speedrun", follow, RunParameters)
