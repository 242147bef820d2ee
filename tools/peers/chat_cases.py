"""Writes tests/golden/text: what transformers and tokenizers say, for src/rft/text to agree with.

    python3 tools/peers/chat_cases.py

Needs transformers (5.24), tokenizers (0.23) and jinja2 from PyPI. The templates and texts are made up here;
between them they use the constructs that the templates of the usual model families use. Training the
tokenizers is not repeatable to the last token: a run writes them and what they say together.
"""

import json
import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "text"

# ---------------------------------------------------------------- chat templates

TEMPLATES = {}

# Plain frame, tools as JSON, tool calls and their results, reasoning cut off earlier turns.
TEMPLATES["frame"] = r"""{%- if tools %}
    {{- '<|start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "Callable:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\nAnswer {\"name\": <name>}<|stop|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|start|>system\n' + messages[0].content + '<|stop|>\n' }}
    {%- else %}
        {{- '<|start|>system\nDefault words.<|stop|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<result>') and message.content.endswith('</result>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|start|>' + message.role + '\n' + content + '<|stop|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|start|>' + message.role + '\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<call>\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|stop|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|start|>user' }}
        {%- endif %}
        {{- '\n<result>\n' }}
        {{- content }}
        {{- '\n</result>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|stop|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

# Headers, dates, tools printed with an indent, and one exception.
TEMPLATES["headers"] = r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|h|>system</h>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: tools\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot|>" }}
{%- if tools is not none and not tools|length == 0 %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("No first user message to put the tools into!") }}
    {%- endif %}
    {{- '<|h|>user</h>\n\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
    {{- first + "<|eot|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|h|>' + message['role'] + '</h>\n\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("Only one call at once, got " ~ message.tool_calls|length) }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|h|>assistant</h>\n\n' -}}
        {%- for name, value in call.arguments | items %}
            {{- name + '="' + value|string + '"' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- endif %}
        {%- endfor %}
        {{- "<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|h|>ipython</h>\n\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|h|>assistant</h>\n\n' }}
{%- endif %}
"""

# Strict alternation, system text inside the first user turn, refusals.
TEMPLATES["alternate"] = r"""{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set head = messages[0]['content'] %}{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% set head = '' %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[I] ' + (head + '\n\n' if loop.first and head else '') + message['content'] + ' [/I]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content']|trim + eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

# Lines and blocks whose newlines and indents trim_blocks and lstrip_blocks must eat, and comments.
TEMPLATES["lines"] = """{# a comment
   of two lines #}
{% for message in messages %}
    {% if message['role'] == 'assistant' %}
        {% set role = 'model' %}
    {% else %}
        {% set role = message['role'] %}
    {% endif %}
<turn>{{ role }}
  {{ message['content'] | trim }}<end>
    {% if not loop.last %}
	-- {{ loop.index }} of {{ loop.length }}, {{ loop.revindex0 }} left
    {% endif %}
{% endfor %}
 {%+ if add_generation_prompt %}
<turn>model
{% endif +%}

{{ '' }}
tail
"""

# What a trainer learns from, between marks, and a loop that stops early.
TEMPLATES["generation"] = """{% for message in messages %}
{% if message.role == 'assistant' %}
<a>{% generation %}{{ message.content }}</a>
{% endgeneration %}
{%- generation -%}   x   {%- endgeneration -%}
{% elif message.role == 'stop' %}
{% break %}
{% elif message.role == 'skip' %}
{% continue %}
{% else %}
<{{ message.role }}>{{ message.content }}
{% endif %}
{% endfor %}
end"""

# Content that is a list of parts, as for models that also see.
TEMPLATES["parts"] = r"""{%- macro body(content, first=false) -%}
    {%- if content is string -%}
        {{- content | trim -}}
    {%- elif content is sequence -%}
        {%- for item in content -%}
            {%- if item.type == 'text' or 'text' in item -%}
                {{- item['text'] | trim -}}
            {%- elif item.type == 'image' -%}
                {{- '<img>' -}}
            {%- else -%}
                {{- raise_exception('Unknown part: ' ~ item.type) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- raise_exception('Invalid content type') -}}
    {%- endif -%}
    {%- if first %}!{% endif -%}
{%- endmacro -%}
{%- macro turn(message, place) -%}
    {{- '<|' + message.role + '|>' }}{{ body(message.content, first=place.first) }}
{%- endmacro -%}
{%- for message in messages -%}
    {{- turn(message, loop) }}{{ '<|end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"""

# Filters, tests, methods and operators, one on each line.
TEMPLATES["zoo"] = r"""{%- set d = {'b': 1, 'a': [1, 2.5, none, true, 'é"\n<&>'], 'C': {'z': {}, 'y': []}} -%}
{{ d | tojson }}
{{ d | tojson(indent=2) }}
{{ d | tojson(sort_keys=true, separators=(',', ':')) }}
{{ d | tojson(ensure_ascii=true) }}
{{ d.items() | list | length }} {{ d.keys() | join('|') }} {{ d.values() | list | length }}
{{ d | dictsort | map('first') | join(',') }}
{% for k, v in d | dictsort %}{{ k }}={{ v | tojson }};{% endfor %}

{{ d.get('nope') is none }} {{ d.get('nope', 'other') }} {{ d['nope'] is defined }} {{ d.nope is undefined }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(' / ') }}
{{ messages | rejectattr('role', 'eq', 'user') | list | length }}
{{ messages | map(attribute='role') | unique | sort | join(',') }}
{{ (messages | last).role }} {{ (messages | first).role }} {{ messages[-1]['role'] }} {{ messages[:-1] | length }}
{{ 'a,b,,c'.split(',') | length }} {{ 'a b  c'.split() | length }} {{ 'a-b-c'.split('-', 1)[1] }} {{ 'a-b-c'.rsplit('-', 1)[0] }}
{{ 'Title me'.title() }} {{ 'up'.upper() }} {{ 'LOW' | lower }} {{ 'cap it' | capitalize }} {{ 'xx' | replace('x', 'y') }}
[{{ '  pad '.strip() }}] [{{ '  pad '.lstrip() }}] [{{ '  pad '.rstrip() }}] [{{ 'xxpadx'.strip('x') }}] [{{ '--a'.lstrip('-') }}]
{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'k=v=w'.partition('=') | join('+') }} {{ 'abc'.find('c') }} {{ 'aXbX'.replace('X', '', 1) }}
{{ 1 + 2 * 3 }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 7 / 2 }} {{ -3 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ 3 > 2 > 1 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.5 }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ 'x' in 'xyz' }} {{ 'q' not in ['q'] }}
{{ none }} {{ true }} {{ false }} {{ 1.0 }} {{ [1, 'two', none, 2.5, true] }} {{ {'k': 'v', 'n': [1]} }} {{ ('t', 1) }}
{{ undefined_thing }}|{{ undefined_thing | default('dflt') }}|{{ '' | default('empty', true) }}|{{ none | default('n') }}
{{ 'yes' if true else 'no' }} {{ 'only' if false }}|{{ (1 if false else 2) }} {{ not true or true and false }}
{{ [3, 1, 2] | sort | join }} {{ [1, 2, 3] | sum }} {{ [1, 2, 3] | max }} {{ [3, 1] | min }} {{ range(3) | list }} {{ range(1, 7, 3) | join(',') }}
{{ [1, 2, 3] | reverse | list }} {{ 'abc'[::-1] }} {{ 'abcdef'[1:4] }} {{ 'abc'[0] }} {{ 'abc' | first }} {{ 'abc' | length }} {{ [1,2,3,4][1:3] }}
{{ '1' | int + 1 }} {{ '1.5' | float }} {{ 3.7 | int }} {{ 2.567 | round(1) }} {{ -1 | abs }} {{ 5 | string + '5' }}
{{ 1 is number }} {{ 'a' is string }} {{ [] is iterable }} {{ 'a' is iterable }} {{ [] is sequence }} {{ 'a' is sequence }} {{ {} is mapping }} {{ 2 is even }} {{ 3 is odd }} {{ none is none }} {{ true is true }} {{ 1 is integer }} {{ 1.5 is float }} {{ true is boolean }} {{ 4 is divisibleby 2 }} {{ 'a' is eq 'a' }} {{ 1 is in [1] }}
{{ none is iterable }} {{ nope is iterable }} {{ 1 is iterable }} {{ {} is sequence }} {{ {} is iterable }} {{ none is sequence }} {{ range(2) is iterable }}
{% set ns = namespace(n=0, text='') %}{% for i in range(4) if i is odd %}{% set ns.n = ns.n + i %}{% set ns.text = ns.text ~ i %}{% else %}none{% endfor %}{{ ns.n }}{{ ns.text }}
{% for x in [] %}x{% else %}empty{% endfor %} {% for a, b in [[1, 2], [3, 4]] %}{{ a * b }},{% endfor %} {% for c in 'xyz' %}{{ loop.index }}{{ c }}{{ loop.cycle('o', 'e') }}{% endfor %}

{% for x in [1, 2, 3] %}{{ loop.previtem is defined }}{{ loop.nextitem | default('-') }} {% endfor %}

{% set block %}set {{ 'in' }} block{% endset %}{{ block | upper }}
{% filter upper %}filtered {{ 'text' }}{% endfilter %}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}
{% raw %}{{ raw }} {% not_a_tag %}{% endraw %}
{% macro m(a, b='dflt', c=none) %}{{ a }}:{{ b }}:{{ c }}{{ caller() if caller is defined }}{% endmacro %}{{ m(1) }} {{ m(1, c=3, b=2) }} {% call m('x') %}called{% endcall %}
{{ "tab\there" }} {{ 'quote\'s' }} {{ "é – 😀" | length }} {{ 'line\nbreak' | tojson }} {{ '<b>&\'"' }} {{ '<b>' | tojson }}
{{ ['a', 'b'] | map('upper') | join }} {{ ' a ' | trim | length }} {{ 'x y' | replace(' ', '_') | upper }} {{ 'a\nb' | indent(2) }} {{ 'abc' | list | join('.') }}
{{ messages[0].nope is defined }} {{ messages[0]['nope'] is none }} {{ (messages[0].nope or 'or') }} {{ 'role' in messages[0] }} {{ messages[99] is defined }}
{{ 1e16 | tojson }} {{ 0.1 | tojson }} {{ 100000 | tojson }} {{ 1.5e-7 | tojson }} {{ 3.0 | tojson }} {{ none | tojson }} {{ 'x' | tojson }}
{{- bos_token }} {{ eos_token }} {{ pad_token is defined }}
"""

TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Says the weather <now> & \"later\"",
     "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Città"},
                                                     "days": {"type": "integer", "enum": [1, 2]}}, "required": ["place"]}}},
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},
]
SYSTEM = {"role": "system", "content": " You are brief. "}
HELLO = {"role": "user", "content": "Hello  there\n"}
ANSWER = {"role": "assistant", "content": "\n Hi! ☕ <b>&amp;</b>\n"}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich", "days": 2, "f": 1.0}}}]}
TWO_CALLS = {"role": "assistant", "content": "Both:", "tool_calls": [
    {"function": {"name": "add", "arguments": "{\"a\": 1}"}}, {"name": "add", "arguments": {"n": [1, 2.5e-8, None, True]}}]}
RESULT = {"role": "tool", "name": "weather", "content": "Rain"}
THOUGHT = {"role": "assistant", "content": "<think>\nlong\nthought\n</think>\n\nShort answer."}
REASONED = {"role": "assistant", "reasoning_content": "hm\n", "content": "Well."}
THINKING = {"role": "assistant", "thinking": "older name", "content": "Well."}
PARTS = {"role": "user", "content": [{"type": "text", "text": " look "}, {"type": "image"}, {"type": "text", "text": "here"}]}

CHATS = {
    "one": [HELLO], "system": [SYSTEM, HELLO], "talk": [SYSTEM, HELLO, ANSWER, {"role": "user", "content": "And now?"}],
    "ends": [HELLO, ANSWER], "tool": [SYSTEM, HELLO, CALL, RESULT, RESULT, ANSWER], "two": [HELLO, TWO_CALLS, RESULT],
    "mapping": [HELLO, CALL, {"role": "tool", "content": {"temp": 20.0, "unit": "°C"}}],
    "thought": [HELLO, THOUGHT, HELLO, THOUGHT], "reasoned": [HELLO, REASONED], "thinking": [HELLO, THINKING, HELLO],
    "parts": [SYSTEM, PARTS], "odd": [{"role": "user", "content": [{"type": "noise"}]}], "wrong": [HELLO, HELLO],
    "role": [HELLO, {"role": "narrator", "content": "x"}],
    "stops": [HELLO, {"role": "skip", "content": "s"}, ANSWER, {"role": "stop", "content": ""}, HELLO],
}

PLAN = {
    "frame": (["one", "system", "talk", "ends", "tool", "two", "thought", "reasoned", "thinking"],
              [{}, {"tools": TOOLS}, {"add_generation_prompt": False}, {"enable_thinking": False}]),
    "headers": (["one", "system", "talk", "tool", "two", "mapping"],
                [{"date_string": "1 May 2026"}, {"date_string": "1 May 2026", "tools": TOOLS},
                 {"date_string": "x", "custom_tools": [], "add_generation_prompt": False}]),
    "alternate": (["one", "system", "talk", "wrong", "role"], [{}]),
    "lines": (["one", "talk"], [{}, {"add_generation_prompt": False}]),
    "generation": (["talk", "stops"], [{}]),
    "parts": (["one", "talk", "parts", "odd"], [{}, {"add_generation_prompt": False}]),
    "zoo": (["talk"], [{}]),
}


def chat_cases():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<u>": 2}, unk_token="<u>")),
        bos_token="<s>", eos_token="</s>", unk_token="<u>")
    cases = []
    for template, (chats, options) in PLAN.items():
        for chat in chats:
            for option in options:
                case = {"template": template, "chat": chat, "options": option}
                arguments = {"add_generation_prompt": True, **option}
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        CHATS[chat], chat_template=TEMPLATES[template], tokenize=False, **arguments)
                except Exception as error:  # noqa: BLE001: the message is what is recorded
                    assert type(error).__name__ == "TemplateError", (case, error)
                    case["refused"] = str(error)
                cases.append(case)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<u>"}
    return {"tokens": tokens, "templates": TEMPLATES, "chats": CHATS, "cases": cases}


# ---------------------------------------------------------------- tokenizers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 0123456789 + - * / = ( )",
    "def add(a, b):\n    return a + b\n\n\nclass Step:\n\tpass\n",
    "Grüße aus Zürich, naïve café; это текст; 日本語の文章です。 😀😃 ☕",
    "What is 12 + 34? It is 46. Don't we'll I'm they're she's.",
    "so so so many many many tokens tokens tokens in in in a a a row row row",
]
TEXTS = [
    "", " ", "  two  spaces ", "\n\n\t\r\n x", "Hello, world!", "The quick brown fox", "don't we'll DON'T", "12345 67.89 -1",
    "naïve café Zürich", "日本語 это", "😀👩‍👩‍👧 ☕\ufe0f", "a\u0301 e\u0301\u0327", "\u00a0nbsp\u3000wide\u200bzero", "<s>hi</s>", "<|stop|>x<|stop|><|start|> y",
    "<s> <mask> ", "x" * 40, "def f():\n    return 1\n", "\ufeffbom", "null\x00byte", "�", "\\frac{1}{2} $x^2$", "[CLS] a [SEP]", "UPPER lower",
]
SPECIALS = ["<s>", "</s>", "<|start|>", "<|stop|>"]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(
        __import__("tokenizers").Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
    return tokenizer


def byte_fallback():
    """BPE over pieces with byte fallback, as converted SentencePiece models have it."""
    vocab = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    vocab += ["▁"] + sorted(set("".join(CORPUS[:2]).replace("\n", "").replace("\t", "").replace(" ", "")))
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("i", "n"), ("▁", "▁"), ("o", "w"), ("r", "e")]
    vocab += ["".join(pair) for pair in merges if "".join(pair) not in vocab]
    model = models.BPE({t: i for i, t in enumerate(vocab)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<|stop|>", normalized=False, rstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(__import__("tokenizers").Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=["<unk>", *SPECIALS], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    return tokenizer


def tokenizer_cases(name, tokenizer):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    # In one line; the pretty form is four times as long.
    (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cases = []
    for text in TEXTS:
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({
            "text": text, "bare": bare, "special": tokenizer.encode(text).ids,
            "decoded": tokenizer.decode(bare), "raw": tokenizer.decode(bare, skip_special_tokens=False),
        })
    return {"name": name, "len": max(tokenizer.get_vocab().values()) + 1, "cases": cases}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    dump = lambda value: json.dumps(value, ensure_ascii=False, indent=1) + "\n"  # noqa: E731
    (OUT / "chat.json").write_text(dump(chat_cases()))
    made = {"byte_level": byte_level(), "byte_fallback": byte_fallback(), "unigram": unigram(), "word_piece": word_piece()}
    (OUT / "tokenizers.json").write_text(json.dumps([tokenizer_cases(*one) for one in made.items()], ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
