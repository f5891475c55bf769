"""OpenAI's JSON to `Ask`, events to OpenAI's JSON.

Every field of OpenAI's API is either honoured or refused by name; nothing is ignored. What is not declared
here is refused too. Fields of our own: top_k, min_p, repeat_penalty, grammar, ignore_eos, deadline_s,
conversation; of chats also template, language, context, options, max_thinking_tokens, cut_loops.
"""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..engine.request import Delta, Done, Embedded, Grammar, Request, Sampling, TokenLogprob
from ..errors import InvalidRequest, MedgeError, Unsupported
from ..prompts.consult import Consult, prepare
from ..prompts.template import Template
from ..prompts.thinking import Family
from .line import Ask

PLAIN = Family()
MAX_CHOICES = 16
MAX_INPUTS = 2048
MAX_TOP_LOGPROBS = 20

# Tokens of thoughts for each of OpenAI's words.
EFFORTS = {"none": 0, "minimal": 128, "low": 512, "medium": 2048, "high": 8192}

# Fields of OpenAI's API that medge does not honour, with what to do instead. A value in the second place
# means the same as leaving the field out, and is accepted.
REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "audio": ("medge answers with text only", ()),
    "best_of": ("use n, and choose yourself", (1,)),
    "function_call": ("medge calls no functions", ("none",)),
    "functions": ("medge calls no functions", ([],)),
    "metadata": ("medge stores no requests", ({},)),
    "modalities": ("medge answers with text only", (["text"],)),
    "moderation": ("medge has no moderation model", ()),
    "parallel_tool_calls": ("medge calls no tools", ()),
    "prediction": ("medge does not take predicted outputs", ()),
    "prompt_cache_key": ("common beginnings are found by themselves", ()),
    "prompt_cache_options": ("common beginnings are found by themselves", ()),
    "prompt_cache_retention": ("common beginnings are found by themselves", ()),
    "safety_identifier": ("medge keeps no record of users", ()),
    "service_tier": ("there is one tier", ("auto", "default")),
    "store": ("medge stores no requests", (False,)),
    "suffix": ("medge does not fill in the middle", ("",)),
    "tool_choice": ("medge calls no tools", ("none", "auto")),
    "tools": ("medge calls no tools", ([],)),
    "user": ("medge keeps no record of users", ()),
    "verbosity": ("ask for it in the prompt", ("medium",)),
    "web_search_options": ("medge works without a network", ()),
}

Body = TypeVar("Body", bound=BaseModel)
Text = Annotated[str, Field(max_length=4_000_000)]
Count = Annotated[int, Field(ge=0, le=1 << 20)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    refusal: None = None
    # Clients send back the message that they got. Thoughts of earlier answers are not shown to the model.
    reasoning_content: Text | None = None

    def plain(self) -> dict[str, str]:
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        # "developer" is OpenAI's newer word for "system"; templates of open models know only the latter.
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    name: str = Field(max_length=64)
    description: str | None = None
    # `schema` is a method of BaseModel.
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Common(BaseModel):
    """Fields of both endpoints."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=512)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: Count | None = None
    stop: Text | list[Text] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None

    top_k: int | None = Field(None, ge=0, le=1 << 20)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    grammar: Text | None = None
    ignore_eos: bool = False
    deadline_s: float | None = Field(None, gt=0, le=86_400)
    conversation: str | None = Field(None, min_length=1, max_length=128)

    @field_validator("stop")
    @classmethod
    def _stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > 16 or any(not t or len(t) > 1000 for t in texts):
            raise ValueError("at most 16 strings of 1 to 1000 characters")
        return value

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, index: int, recommended: Mapping[str, float]) -> Sampling:
        """The sampling of choice `index`: choices of one request differ by their seed.

        Args:
            recommended: what is taken where the request names nothing.
        """
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "seed": None if self.seed is None else self.seed + index,
        }
        bias = []
        for key, value in (self.logit_bias or {}).items():
            if not key.isdecimal() or len(key) > 9:
                raise InvalidRequest(
                    f"logit_bias: {key!r:.80} is no token id; keys are numbers.", "logit_bias"
                )
            bias.append((int(key), float("-inf") if value == -100 else value))
        chosen: dict[str, Any] = {**recommended, **{k: v for k, v in given.items() if v is not None}}
        return Sampling(
            **chosen,
            logit_bias=tuple(bias),
        )

    def answer_grammar(self) -> Grammar | None:
        form = self.response_format
        if form is None or form.type == "text":
            return None if self.grammar is None else Grammar("gbnf", self.grammar)
        if self.grammar is not None:
            raise InvalidRequest("Send either grammar or response_format, not both.", "grammar")
        if form.type == "json_object":
            return Grammar("json_schema", '{"type": "object"}')
        if form.json_schema is None:
            raise InvalidRequest(
                "response_format of type json_schema needs json_schema with name and schema.",
                "response_format.json_schema",
            )
        return Grammar("json_schema", json.dumps(form.json_schema.schema_))


class ChatBody(_Common):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    template: str | None = Field(None, min_length=1, max_length=64)
    language: Literal["en", "es", "fr", "zh"] | None = None
    context: Text | None = None
    options: dict[str, str] | None = Field(None, max_length=26)

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    max_thinking_tokens: Count | None = None
    cut_loops: bool = True

    def consult(self, templates: Mapping[str, Template], model: str) -> Consult | None:
        """The question in the template that is asked for; None if none is.

        Raises:
            InvalidRequest: a field that only a template has a place for; and what `prompts.consult` refuses.
        """
        if self.template is None:
            for name in ("language", "context", "options"):
                if getattr(self, name) is not None:
                    raise InvalidRequest(f'{name} goes into a template; send template, such as "auto".', name)
            return None
        return prepare(
            [m.plain() for m in self.messages], self.template, templates, model,
            language=self.language, context=self.context, options=self.options,
        )  # fmt: skip

    def through(self, consult: Consult, thinks: bool) -> ChatBody:
        """This request with the template's messages, and its settings where there are none."""
        template = consult.template
        budget = template.budget
        changed: dict[str, Any] = {"messages": [Message.model_validate(m) for m in consult.messages]}
        for name, value in template.sampling:
            if getattr(self, name) is None:
                changed[name] = value
        thoughts = self.thoughts(thinks)
        if thinks and thoughts is None:
            changed["max_thinking_tokens"] = thoughts = budget.max_thinking_tokens
        if self.max_tokens is None and self.max_completion_tokens is None:
            changed["max_tokens"] = budget.max_answer_tokens + (thoughts or 0)
        if template.answer_schema and self.response_format is None and self.grammar is None:
            schema = JsonSchema(name=template.id.replace("-", "_"), schema=template.answer_schema)
            changed["response_format"] = ResponseFormat(type="json_schema", json_schema=schema)
        return self.model_copy(update=changed)

    def thoughts(self, thinks: bool) -> int | None:
        """Tokens of thoughts that are asked for; None if it is left to the model.

        Raises:
            InvalidRequest: two fields that say different things.
            Unsupported: thoughts of a model that has none.
        """
        effort = None if self.reasoning_effort is None else EFFORTS[self.reasoning_effort]
        asked = effort if self.max_thinking_tokens is None else self.max_thinking_tokens
        name = "reasoning_effort" if self.max_thinking_tokens is None else "max_thinking_tokens"
        if effort is not None and asked != effort:
            raise InvalidRequest(
                f"max_thinking_tokens is {asked}, and reasoning_effort {self.reasoning_effort!r} stands for "
                f"{effort}; send one.",
                name,
            )
        if asked and not thinks:
            raise Unsupported(f"This model writes no thoughts. Leave {name} out.", name)
        return asked

    def asks(self, deadline_s: float, family: Family = PLAIN, consult: Consult | None = None) -> list[Ask]:
        """One for each choice.

        Args:
            deadline_s: the server's limit.
            family: the model's.
            consult: the question in its template, if it goes through one.
        """
        if consult is not None:
            return self.through(consult, family.thinks)._asks(deadline_s, family, consult)
        return self._asks(deadline_s, family, None)

    def _asks(self, deadline_s: float, family: Family, consult: Consult | None) -> list[Ask]:
        limits = {n for n in (self.max_completion_tokens, self.max_tokens) if n is not None}
        if len(limits) > 1:
            raise InvalidRequest(
                f"max_tokens is {self.max_tokens} and max_completion_tokens is "
                f"{self.max_completion_tokens}; send one.",
                "max_tokens",
            )
        limit = limits.pop() if limits else None
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true.", "top_logprobs")
        n_top = (self.top_logprobs or 0) if self.logprobs else None
        messages = tuple(m.plain() for m in self.messages)
        form: dict[str, Any] = {"messages": messages, "max_thoughts": self.thoughts(family.thinks)}
        if consult is not None:
            form |= {"answer_tokens": consult.template.budget.max_answer_tokens, "n_own": 1}
        if self.conversation is not None and (self.n or 1) == 1:
            form["history"] = consult.history if consult else messages
        asks = _asks(self, deadline_s, limit, n_top, False, family.sampling, **form)
        return [replace(ask, request=replace(ask.request, cut_loops=self.cut_loops)) for ask in asks]


class CompletionBody(_Common):
    """POST /v1/completions"""

    prompt: Text | list[Text] | list[Count] | list[list[Count]]
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    def asks(self, deadline_s: float) -> list[Ask]:
        prompts = _listed("prompt", self.prompt)
        if len(prompts) > MAX_CHOICES:
            raise InvalidRequest(
                f"prompt has {len(prompts)} entries; at most {MAX_CHOICES} are taken at once.",
                "prompt",
            )
        limit = 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default here
        asks = []
        for prompt in prompts:
            form: dict[str, Any] = {"text": prompt} if isinstance(prompt, str) else {"tokens": prompt}
            asks += _asks(self, deadline_s, limit, self.logprobs, bool(self.echo), {}, **form)
        return asks


class EmbeddingBody(BaseModel):
    """POST /v1/embeddings"""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=512)
    input: Text | list[Text] | list[Count] | list[list[Count]]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None

    def asks(self, n_embd: int) -> list[Ask]:
        """One for each input. Its `Request` has but an id.

        Args:
            n_embd: numbers of this model's vectors.
        """
        if self.dimensions not in (None, n_embd):
            raise Unsupported(
                f"dimensions is {self.dimensions}, and this model's vectors have {n_embd} numbers. "
                "Leave it out.",
                "dimensions",
            )
        inputs = _listed("input", self.input)
        if len(inputs) > MAX_INPUTS:
            raise InvalidRequest(
                f"input has {len(inputs)} entries; at most {MAX_INPUTS} are taken at once. "
                "Send it in several requests.",
                "input",
            )
        for i, value in enumerate(inputs):
            if not value:
                where = "input" if len(inputs) == 1 else f"input.{i}"
                raise InvalidRequest(f"{where} is empty; send some text.", where)
        return [
            Ask(
                Request(uuid.uuid4().hex, []),
                text=value if isinstance(value, str) else None,
                tokens=None if isinstance(value, str) else value,
            )
            for value in inputs
        ]

    def answer(self, model: str, ends: Sequence[Embedded]) -> dict[str, Any]:
        """The answer, with the vectors in the order of the inputs.

        Args:
            model: the name to give.
        """
        n_prompt = sum(end.timing.n_prompt for end in ends)
        data = [
            {"object": "embedding", "index": i, "embedding": self._numbers(end.vector)}
            for i, end in enumerate(ends)
        ]
        return {
            "object": "list",
            "data": data,
            "model": model,
            "usage": {"prompt_tokens": n_prompt, "total_tokens": n_prompt},
        }

    def _numbers(self, vector: bytes) -> str | list[float]:
        if self.encoding_format == "base64":
            return base64.b64encode(vector).decode()
        return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def _listed(name: str, value: Any) -> list[str | tuple[int, ...]]:
    """Texts and token lists of a field that takes one or several of either."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidRequest(f"{name} is an empty list; send some text.", name)
    if isinstance(value[0], int):
        return [tuple(value)]
    return [v if isinstance(v, str) else tuple(v) for v in value]


def _asks(
    body: _Common,
    deadline_s: float,
    max_tokens: int | None,
    n_top_logprobs: int | None,
    echo: bool,
    recommended: Mapping[str, float],
    **form: Any,
) -> list[Ask]:
    if max_tokens == 0 and not echo:
        raise InvalidRequest(
            "max_tokens is 0, so there is nothing to answer; ask for 1 or more.", "max_tokens"
        )
    grammar = body.answer_grammar()
    return [
        Ask(
            Request(
                id=uuid.uuid4().hex,
                tokens=[],
                max_tokens=max_tokens,
                sampling=body.sampling(index, recommended),
                stop=body.stops(),
                n_top_logprobs=n_top_logprobs,
                echo=echo,
                grammar=grammar,
                ignore_eos=body.ignore_eos,
                deadline_s=min(body.deadline_s or deadline_s, deadline_s),
                conversation=body.conversation,
            ),
            **form,
        )
        for index in range(body.n or 1)
    ]


def parse(model: type[Body], data: bytes) -> Body:
    """A request body.

    Raises:
        InvalidRequest: not JSON, a wrong type or range; with the field.
        Unsupported: a field that is known and not honoured, or not known at all.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error!s:.200}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_json_type(value)}.")
    _refuse_surrogates(data, value)
    for name in list(value):
        if name in REFUSED:
            instead, neutral = REFUSED[name]
            if value[name] is not None and value[name] not in neutral:
                raise Unsupported(f"{name} is not supported: {instead}. Leave it out.", name)
            del value[name]
        elif name not in model.model_fields:
            raise Unsupported(f"Unknown field {name!r:.80}. Leave it out, or check its spelling.", name)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None


def _refuse_surrogates(data: bytes, value: dict[str, Any]) -> None:
    if b"\\u" not in data:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(
            "The body has half a character: a surrogate like \\ud83d without its pair. Send whole characters."
        ) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    # Unions report every alternative; the deepest error is about the one that was meant.
    first = max(error.errors(), key=lambda e: len(e["loc"]))
    path = ".".join(str(p) for p in first["loc"] if not (isinstance(p, str) and ("[" in p or p in _BRANCHES)))
    if first["type"] == "extra_forbidden":
        return Unsupported(f"Unknown field {path!r}. Leave it out, or check its spelling.", path)
    shown = json.dumps(first["input"], default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "missing" else f"{shown} is not possible: "
    return InvalidRequest(f"{path}: {given}{message[:1].lower()}{message[1:]}.", path)


_BRANCHES = frozenset(("str", "constrained-str", "constrained-int", "Part"))


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


# -- answers


def usage(dones: Sequence[Done]) -> dict[str, Any]:
    """OpenAI's usage over all choices. A prompt that several choices share counts once for each."""
    prompt = sum(d.timing.n_prompt for d in dones)
    generated = sum(d.timing.n_generated for d in dones)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(d.timing.n_cached for d in dones)},
        "completion_tokens_details": {"reasoning_tokens": sum(d.n_thoughts for d in dones)},
    }


def timings(done: Done) -> dict[str, Any]:
    """What the answer cost: an extra field beside usage."""
    t = done.timing
    return {
        "queued_s": t.queued_s,
        "ttft_s": t.ttft_s,
        "total_s": t.total_s,
        "tokens_per_s": t.tokens_per_s,
        "n_prompt": t.n_prompt,
        "n_cached": t.n_cached,
        "n_generated": t.n_generated,
        "peak_memory_bytes": t.peak_memory_bytes,
    }


def ending(done: Done) -> dict[str, Any]:
    """How an answer came about, where `finish_reason` does not tell: an extra field of its choice."""
    facts: dict[str, Any] = {}
    if done.thoughts_end:
        facts["thoughts"] = {"n_tokens": done.n_thoughts, "end": done.thoughts_end}
    if done.loop:
        facts["cut"] = "loop"
    return {"medge": facts} if facts else {}


class Answer:
    """One answer in OpenAI's form, as a stream of chunks or as a whole.

    Args:
        chat: the chat form; otherwise that of completions.
        model: the name to give.
        consult: what stands before and after the text, and why.
    """

    def __init__(self, chat: bool, model: str, consult: Consult | None = None) -> None:
        self._chat = chat
        self._consult = consult
        self.id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())
        self._model = model
        self._kind = "chat.completion" if chat else "text_completion"
        chunk = "chat.completion.chunk" if chat else "text_completion"
        self._head = (
            f'data: {{"id":"{self.id}","object":"{chunk}","created":{self._created},'
            f'"model":{json.dumps(model)},"choices":['
        )

    # A chunk is put together by hand: this is the only work that the server does for every token.

    def first(self, index: int) -> str:
        """The chunk that opens a choice of a chat."""
        if not self._chat:
            return ""
        delta = '"delta":{"role":"assistant","content":""}'
        end = f',"medge":{json.dumps(self._consult.facts)}' if self._consult else ""
        opened = f'{self._head}{{"index":{index},{delta},"logprobs":null,"finish_reason":null}}]{end}}}\n\n'
        return opened + self._said(index, self._consult.before if self._consult else "")

    def chunk(self, index: int, delta: Delta, offset: int = 0) -> str:
        """New text. `offset` is the length of the choice's text before it."""
        text = json.dumps(delta.text, ensure_ascii=False)
        tokens = delta.prompt_logprobs + delta.logprobs
        logprobs = json.dumps(self._logprobs(tokens, offset)) if tokens else "null"
        content = f'"delta":{{"content":{text}}}' if self._chat else f'"text":{text}'
        if delta.thoughts:
            content = f'"delta":{{"reasoning_content":{json.dumps(delta.thoughts, ensure_ascii=False)}}}'
        return f'{self._head}{{"index":{index},{content},"logprobs":{logprobs},"finish_reason":null}}]}}\n\n'

    def _said(self, index: int, text: str) -> str:
        """A chunk that no token belongs to."""
        return self.chunk(index, Delta("", text)) if text else ""

    def last(self, index: int, done: Done) -> str:
        content = '"delta":{}' if self._chat else '"text":""'
        facts = "".join(f',"{name}":{json.dumps(value)}' for name, value in ending(done).items())
        return self._said(index, self._consult.after if self._consult else "") + (
            f'{self._head}{{"index":{index},{content},"logprobs":null,'
            f'"finish_reason":"{done.finish_reason}"{facts}}}]}}\n\n'
        )

    def usage(self, dones: Sequence[Done]) -> str:
        extra = {"usage": usage(dones), "timings": timings(dones[-1])}
        return f"{self._head}],{json.dumps(extra)[1:]}\n\n"

    def whole(
        self,
        texts: Sequence[str],
        thoughts: Sequence[str],
        logprobs: Sequence[Sequence[TokenLogprob]],
        dones: Sequence[Done],
    ) -> dict[str, Any]:
        """The answer in one piece; each list has one entry a choice."""
        choices = []
        if self._consult:
            texts = [f"{self._consult.before}{text}{self._consult.after}" for text in texts]
        for index, (text, done) in enumerate(zip(texts, dones)):
            choice: dict[str, Any] = {"index": index, "finish_reason": done.finish_reason, **ending(done)}
            if self._chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
                if done.thoughts_end:
                    choice["message"]["reasoning_content"] = thoughts[index]
            else:
                choice["text"] = text
            choice["logprobs"] = self._logprobs(tuple(logprobs[index]), 0)
            choices.append(choice)
        return {
            "id": self.id,
            "object": self._kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "usage": usage(dones),
            "timings": timings(dones[-1]),
            **({"medge": self._consult.facts} if self._consult else {}),
        }

    def _logprobs(self, tokens: tuple[TokenLogprob, ...], offset: int) -> dict[str, Any] | None:
        if not tokens:
            return None
        if self._chat:
            return {"content": [_chat_logprob(t) for t in tokens], "refusal": None}
        return _completion_logprobs(tokens, offset)


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)  # JSON has no infinity; OpenAI's own floor


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        **_entry(token.piece, token.logprob or 0.0),
        "top_logprobs": [_entry(piece, logprob) for _, piece, logprob in token.top],
    }


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(piece), "logprob": _finite(logprob), "bytes": list(piece)}


def _completion_logprobs(tokens: tuple[TokenLogprob, ...], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(_text(token.piece))
    return {
        "tokens": [_text(t.piece) for t in tokens],
        "token_logprobs": [None if t.logprob is None else _finite(t.logprob) for t in tokens],
        "top_logprobs": [
            None if t.logprob is None else {_text(p): _finite(lp) for _, p, lp in t.top} for t in tokens
        ],
        "text_offset": offsets,
    }


def error_body(error: MedgeError) -> dict[str, Any]:
    """OpenAI's error form."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_event(error: MedgeError) -> str:
    return f"data: {json.dumps(error_body(error))}\n\n"


def models(name: str, created: int) -> dict[str, Any]:
    entry = {"id": name, "object": "model", "created": created, "owned_by": "medge"}
    return {"object": "list", "data": [entry]}
