"""Writes tests/golden/text/{expressions,continued}.json: what transformers' template engine prints.

    python3 tools/peers/template_cases.py

Needs transformers (5.24) and jinja2 (3.1) from PyPI. `expressions.json` holds small templates over fixed
variables, one for each operator, filter and method that chat templates use; `continued.json` conversations
whose last message goes on.
"""

import json
import pathlib

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from chat_cases import CHATS, TEMPLATES

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "text"

WIDE = 123456789012345678901234567890
VARS = {'f': 1e-05,
 'g': 1.0,
 'h': 1.2345678901234568e+17,
 'neg': -3,
 'n': 7,
 's': 'Hello, World',
 'e': '',
 'words': ['b', 'A', 'c'],
 'nums': [3, 1.5, 2],
 'd': {'a': 1, 'b': [1e-07, None, True]},
 'mixed': [1, 'x', None, 2.5, [1e+16]],
 't': True,
 'z': None,
 'objs': [{'k': 'x', 'v': 2}, {'k': 'y', 'v': 1}, {'k': 'x', 'v': 3}],
 'long': 'The quick brown-fox jumped over the lazy dog -- and well-known self-contained antidisestablishmentarianism',
 'uni': 'Grüße \xa0 \u200b it\'s "q"\n\ttab'}

EXPRESSIONS = r'''f
g
h
neg
f ~ ' ' ~ g
f | string
[f, g] | join(', ')
d
mixed
words
nums | sum
(1, 2)
(1,)
()
[(1, 'a')]
uni
[uni]
{'a': f}
d | tojson
f | tojson
mixed | tojson
2 ** 64
2 ** 64 + 1
2 ** 100
(2 ** 100) | tojson
18446744073709551616
-9223372036854775809
10 ** 20 | string
10 / 4
10 // 4
-7 // 2
-7 % 3
7 % -3
7.5 % 2
-7.5 % 2
7 // 2.0
2 ** -1
2 ** 0.5
0.1 + 0.2
1e16
1e15
123456789.123456789
1e22
1.0e-4
0.00001234
'%s' % f
'%s and %s' % (f, words)
'%d' % 3.7
'%5d|' % 42
'%-5d|' % 42
'%05d' % 42
'%+d' % 42
'%x %X %o' % (255, 255, 8)
'%.2f' % 3.14159
'%8.3f|' % 3.14159
'%e' % 12345.678
'%g' % 0.00001234
'%g' % 1234567
'%c' % 'x'
'%r' % 'it'
'%r' % s
'%%'  % ()
'%(a)s %(b)r' % d
'%(a)05d' % d
'%s' % z
'%s' % d
'%s' % [1, 2]
'%10s|' % s
'%-15s|' % s
'%.3s' % s
'%i' % 7
'%s' | format(f)
'%s %s' | format('a', 1.0)
'%(x)s' | format(x=f)
'{} {}'.format(f, g)
'{0} {1} {0}'.format('a', 'b')
'{:.2f}'.format(3.14159)
'{:>5}|'.format('a')
'{:05d}'.format(42)
'{x}'.format(x=1)
s | center(20)
s | center(21) ~ '|'
'ab' | center(5) ~ '|'
'abc' | center(6) ~ '|'
s.center(20) ~ '|'
s.center(21, '*')
'ab'.center(5, '-')
'abc'.center(6, '-')
s.ljust(15) ~ '|'
s.rjust(15, '.')
'42'.zfill(5)
'-42'.zfill(5)
s.swapcase()
s.casefold()
s.title()
s.partition(', ')
s.rpartition('o')
s.split(', ')
s.split('o', 1)
s.rsplit('o', 1)
s.splitlines()
'a\nb\n'.splitlines()
s.find('o')
s.rfind('o')
s.index('o')
s.count('l')
s.replace('l', 'L', 1)
s.startswith(('He', 'x'))
s.endswith('d')
s.isalpha()
'abc'.isalnum()
'12'.isdigit()
', '.join(words)
words | sort
words | sort(case_sensitive=true)
words | sort(reverse=true) | join
nums | sort
objs | sort(attribute='v') | map(attribute='v') | list
objs | map(attribute='k') | unique | list
objs | groupby('k') | map('first') | list
objs | selectattr('k', 'equalto', 'x') | list
objs | selectattr('v', '>', 1) | map(attribute='v') | join('-')
objs | rejectattr('k', 'in', ['x']) | list
objs | sum(attribute='v')
nums | map('string') | join
nums | min
nums | max
words | first
words | last
words | length
words | reverse | list
s | reverse
s | upper
s | lower
s | title
s | capitalize
s | trim
'  x '|trim
s | replace('l', 'L')
s | replace('l', 'L', 1)
s | wordcount
long | wordwrap(20)
long | wordwrap(20, false)
long | wordwrap(10)
long | wordwrap(10, break_on_hyphens=false)
long | wordwrap(20, wrapstring='|')
'a  b   c' | wordwrap(3)
'  lead' | wordwrap(4)
'' | wordwrap(4)
'one\n\ntwo three' | wordwrap(5)
'--- a--b c---d-e' | wordwrap(3)
'foo-bar-baz' | wordwrap(5)
'x-y-z aa-bb' | wordwrap(4)
'a,b-c e.g-foo' | wordwrap(4)
s | urlencode
'a/b c?&=é' | urlencode
{'a b': 1, 'c': 'd/e'} | urlencode
[('x', 1), ('y', 'z z')] | urlencode
s | indent(4)
'a\nb\n\nc' | indent(2)
'a\nb' | indent(2, true)
'a\n\nb' | indent(2, blank=true)
s | length
d | length
d | items | list
d.items() | list
d | dictsort
d.keys() | list
d.values() | list
d.get('a')
d.get('zz')
d.get('zz', 5)
'3' | int
'3.7' | int
'x' | int
'x' | int(5)
'0x1f' | int(0, 16)
3.7 | int
-3.7 | int
'1e3' | int
'123456789012345678901234567890' | int
'3.5' | float
'x' | float
'1e400' | float
3 | float
3.14159 | round(2)
2.5 | round
3.5 | round
-2.5 | round
2.675 | round(2)
42 | round
3.7 | round(method='floor')
3.2 | round(0, 'ceil')
3 | abs
-3.5 | abs
z | default('x')
e | default('x', true)
undefinedvar | default('x')
undefinedvar
undefinedvar is defined
z is none
t
not t
1 == 1.0
true == 1
'a' == 'a'
[1, 2] == [1, 2]
(1, 2) == [1, 2]
{'a': 1} == {'a': 1.0}
'a' in 'abc'
1 in [1, 2]
'a' in d
'zz' not in d
1 < 2 < 3
3 > 2 > 2
1 if t else 2
(1 if false)
'a' if f < 1 else 'b'
words[0]
words[-1]
words[1:]
words[:-1]
words[::-1]
words[::2]
s[0]
s[1:4]
s[::-1]
s[-3:]
d['a']
d.b[0]
range(5) | list
range(2, 10, 3) | list
words + ['z']
(1, 2) + (3,)
'ab' * 3
[1] * 3
3 * 'ab'
words is iterable
s is string
n is number
f is float
n is integer
t is boolean
d is mapping
words is sequence
s is sequence
n is odd
n is even
n is divisibleby(7)
words is eqto(1)
n is sameas(n)
'a' is in(['a'])
s is lower
'abc' is lower
loop is defined
dict(a=1, b=2)
namespace(a=1).a
words | batch(2) | list
words | batch(2, '-') | list
words | slice(2) | list
nums | select('gt', 1.6) | list
nums | reject('lt', 2) | list
words | select('in', ['A']) | list
'a-b' | list
d | list
words | tojson(indent=2)
d | tojson(sort_keys=true, separators=(',', ':'))
uni | tojson
uni | tojson(ensure_ascii=true)
'<b>' | escape
'<b>' | e
'<b>' | safe
'x' ~ none ~ true ~ 1.50
1.5 | string ~ 'x'
[true, none] | string
-0.0
1e400
-(1e400)
[1e400]
1e5 | int
s | truncate(5)
s | truncate(8, true)
long | truncate(30)
'a' < 'b'
-n
- n ** 2
(-n) ** 2
2 ** 3 ** 2
1 + 2 * 3 - 4 / 2
(1 + 2) * 3
1 - (2 - 3)
10 - 2 - 3
2 * (3 % 2)
n % 4 % 2
not n == 7 and t or f
n is not none and n > 3
(n, s)|length
'%s' % 'a' ~ 'b'
'a' ~ 1 + 2
1 + 2 ~ 'a'
'x' ~ 2 * 3
'-' * 10
(words | length) - 1
words | length - 1
{'a': {'b': 1}}.a.b
{1: 'x'}[1]
{'a': 1, 'b': 2} | tojson
'a' 'b'
big
big | tojson
big + 1
[big]
'{}'.format(big)
'%d' % big
big | string | length
'''.strip().split("\n")

STATEMENTS = ['{% for a, b in d.items() %}{{ loop.index }}:{{ a }}={{ b }};{% endfor %}',
 "{% for x in words if x != 'A' %}{{ x }}{% if not loop.last %},{% endif %}{% else %}none{% endfor %}",
 '{% for x in [] %}a{% else %}none{% endfor %}',
 '{% set x = 1 %}{% set y, z2 = 1, 2 %}{{ x }}{{ y }}{{ z2 }}',
 '{% set ns = namespace(a=0) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}',
 "{% macro m(a, b=2, c='x') %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c='y') }}{{ m(a=3, b=4) }}",
 '{% macro w() %}<{{ caller() }}>{% endmacro %}{% call w() %}in{% endcall %}',
 '{% macro w() %}<{{ caller(1, 2) }}>{% endmacro %}{% call(a, b) w() %}{{ a }}-{{ b }}{% endcall %}',
 '{% if n > 10 %}a{% elif n > 5 %}b{% elif n > 1 %}c{% else %}d{% endif %}',
 '{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}',
 '{% set x %}hi {{ s }}{% endset %}{{ x | upper }}',
 '{% set x | upper %}hi{% endset %}{{ x }}',
 '{% filter upper %}a{{ s }}{% endfilter %}',
 "{% filter replace('a', 'b') | upper %}aa{% endfilter %}",
 'a\n  {% if t %}\n  b\n  {% endif %}\nc\n',
 'a {%- if t -%} b {%- endif -%} c',
 '  {#- comment -#}  x {# y #}\nz',
 '{% raw %}{{ not }} {% x %}{% endraw %}',
 "{{ '{{' }}{{ '}}' }} { } {x}",
 'line1\n{{ s }}\n\n',
 '{% for i in range(6) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% '
 'endfor %}',
 "{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.length "
 '}}{% endfor %}',
 '{% for x in [1,1,2] %}{{ loop.changed(x) }}{% endfor %}',
 '{% for x in [[1,[2]],[3]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor '
 '%}',
 '{% for i in range(3) %}{{ loop.previtem }}<{{ loop.nextitem }};{% endfor %}',
 "{% for o in objs | sort(attribute='k,v') %}{{ o.k }}{{ o.v }} {% endfor %}",
 "{% for k, g in objs | groupby('k') %}{{ k }}: {{ g | length }};{% endfor %}",
 '{% generation %}x{{ n }}{% endgeneration %}',
 '{% set a = [1] %}{% set b = a + [2] %}{{ b }}',
 '{{ s }}{# c #}{{- n }}',
 '{%- set x = 1 -%}\n  x{{ x }}',
 "{% for m in messages %}{{ m['role'] }}{{ m.content }}{% endfor %}",
 "{{ messages[0]['content'] + '!' }}",
 "{% set x = {'a': n, 'b': [s]} %}{{ x.b[0] }}{{ x['a'] }}",
 '{% macro a(x) %}{{ x }}{% if x > 0 %}{{ a(x - 1) }}{% endif %}{% endmacro %}{{ a(3) }}',
 "{% if 'a' in 'abc' and not ('z' in 'abc') %}y{% endif %}",
 '{{ (words | first) ~ (words | last) }}',
 "{{ (1, 2)[0] }}{{ [1, 2][1] }}{{ 'abc'[1] }}",
 '{{ -1 | abs }}',
 '{{ 1 if n else 2 if s else 3 }}',
 "{{ words | map('upper') | join(', ') }}",
 "{{ words|join(', ', attribute=0) if false else 'q' }}",
 "{{ 'a'\n  ~ 'b' }}\n{{ 1 }}"]


def expressions():
    cases = []
    for source in ["{{ " + e + " }}" for e in EXPRESSIONS] + STATEMENTS:
        variables = {**VARS, "big": WIDE, "messages": [{"role": "user", "content": "hi"}], "tools": None, "documents": None}
        try:
            text = _compile_jinja_template(source).render(add_generation_prompt=True, **variables)
        except Exception:  # noqa: BLE001: whatever it is, there is no text
            text = None
        cases.append([source, text])
    return {"variables": VARS, "big": str(WIDE), "cases": cases}


def continued():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<u>": 2}, unk_token="<u>")),
        bos_token="<s>", eos_token="</s>", unk_token="<u>")
    cases = []
    for template in ["frame", "headers", "alternate", "lines", "generation"]:
        for words in ["The answer is", " spaced ", "<think>\nSo", "two\nlines\n", "And now?", ""]:
            chat = [*CHATS["talk"], {"role": "assistant", "content": words}]
            options = {"date_string": "x"}
            try:
                text = tokenizer.apply_chat_template(
                    chat, chat_template=TEMPLATES[template], tokenize=False, continue_final_message=True, **options)
            except Exception:  # noqa: BLE001: refused
                text = None
            cases.append({"template": template, "chat": chat, "options": options, "text": text})
    return cases


def main():
    for name, made in {"expressions": expressions(), "continued": continued()}.items():
        (OUT / f"{name}.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
