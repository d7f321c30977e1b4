"""The wording of a prompt: two Jinja templates, rendered in a sandbox.

A template sees

- ``text`` (the user turn only);
- ``candidates``: list of labels;
- ``candidates_text``: the candidates as the data file wrote them, else as Python prints the list;
- ``descriptions``: label -> meaning, for the candidates that have one;
- ``options``: for each candidate its ``code``, ``label`` and ``description``. The code is what the model answers: with
  ``prompt.answer=name`` it is the label itself.

Nothing in a template or in the data can run code: templates are rendered by Jinja's ``ImmutableSandboxedEnvironment``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fenlei.config import PromptConfig
from fenlei.errors import ConfigError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# Stands for the text while the template is rendered. Private-use characters do not occur in ordinary text, and the
# number of marks is checked after rendering.
TEXT_MARK = "\ue0f0fenlei:text\ue0f1"


@dataclass(frozen=True)
class PromptTemplate:
    """Jinja source of the system turn (may be empty) and of the user turn."""

    system: str
    user: str


# Our own presets put everything constant, candidates included, before the text, so that rows can share a prefix.
PRESET_TEMPLATES: dict[str, PromptTemplate] = {
    "tutorial-zh": PromptTemplate(
        system="你是一个文本分类领域的专家，你会接收到一段文本和几个潜在的分类选项，请输出文本内容的正确类型",
        user="文本:{{ text }},类型选型:{{ candidates_text }}",
    ),
    "zh": PromptTemplate(
        system="你是文本分类专家。请阅读文本，从给出的类别中选出最符合其内容的一个，只输出类别名称。",
        user=(
            "类别：{{ candidates | join('、') }}\n"
            "{% for name, meaning in descriptions.items() %}{{ name }}：{{ meaning }}\n{% endfor %}"
            "文本：{{ text }}"
        ),
    ),
    "en": PromptTemplate(
        system=(
            "You are an expert in text classification. Read the text, choose the one class that fits it best, "
            "and answer with the name of the class only."
        ),
        user=(
            "Classes: {{ candidates | join('; ') }}\n"
            "{% for name, meaning in descriptions.items() %}{{ name }}: {{ meaning }}\n{% endfor %}"
            "Text: {{ text }}"
        ),
    ),
}

# The same with prompt.answer=code. The preset tutorial-zh has no such form: its wording is the tutorial's.
CODE_TEMPLATES: dict[str, PromptTemplate] = {
    "zh": PromptTemplate(
        system="你是文本分类专家。请阅读文本，从给出的类别中选出最符合其内容的一个，只输出类别的代码。",
        user=(
            "类别：\n"
            "{% for o in options %}{{ o.code }}. {{ o.label }}"
            "{% if o.description %}：{{ o.description }}{% endif %}\n{% endfor %}"
            "文本：{{ text }}"
        ),
    ),
    "en": PromptTemplate(
        system=(
            "You are an expert in text classification. Read the text, choose the one class that fits it best, "
            "and answer with the code of the class only."
        ),
        user=(
            "Classes:\n"
            "{% for o in options %}{{ o.code }}. {{ o.label }}"
            "{% if o.description %}: {{ o.description }}{% endif %}\n{% endfor %}"
            "Text: {{ text }}"
        ),
    ),
}


def template_of(config: PromptConfig) -> PromptTemplate:
    """The templates that a configuration asks for.

    Raises:
        ConfigError: the model is to answer with codes that the template does not show, or it does not parse.
    """
    if config.preset == "custom":
        template = PromptTemplate(system=config.system or "", user=config.user or "")
        if config.answer == "code" and not _uses_options(template):
            raise ConfigError(
                "prompt.answer=code: the template never shows the codes; list them in prompt.user, e.g. "
                "{% for o in options %}{{ o.code }}. {{ o.label }}\\n{% endfor %}"
            )
        return template
    return (CODE_TEMPLATES if config.answer == "code" else PRESET_TEMPLATES)[config.preset]


def _uses_options(template: PromptTemplate) -> bool:
    from jinja2 import TemplateError, meta

    for where, source in (("prompt.system", template.system), ("prompt.user", template.user)):
        try:
            if "options" in meta.find_undeclared_variables(_environment().parse(source)):
                return True
        except TemplateError as error:
            raise ConfigError(f"{where}: {error}") from None
    return False


def render(
    template: PromptTemplate,
    candidates: Sequence[str],
    *,
    candidates_text: str | None = None,
    descriptions: Mapping[str, str] | None = None,
    codes: Mapping[str, str] | None = None,
) -> tuple[str, str, str]:
    """Renders both turns around the place of the text.

    Args:
        template: the wording.
        candidates: the labels to choose from.
        candidates_text: their wording where the data file gave one.
        descriptions: label -> meaning.
        codes: label -> what the model answers; the label itself by default.

    Returns:
        The system turn, the user turn before the text, and the user turn after the text.

    Raises:
        ConfigError: a template does not parse, uses an unknown name, or does not hold ``{{ text }}`` exactly once.
    """
    descriptions, codes = descriptions or {}, codes or {}
    values = {
        "candidates": list(candidates),
        "candidates_text": candidates_text if candidates_text is not None else str(list(candidates)),
        "descriptions": {c: descriptions[c] for c in candidates if c in descriptions},
        "options": [{"code": codes.get(c, c), "label": c, "description": descriptions.get(c, "")} for c in candidates],
    }
    system = _render_one("prompt.system", template.system, values)
    user = _render_one("prompt.user", template.user, {**values, "text": TEXT_MARK})
    before, mark, after = user.partition(TEXT_MARK)
    if not mark or TEXT_MARK in after:
        raise ConfigError(
            f"prompt.user must contain {{{{ text }}}} exactly once and unchanged; found it {user.count(TEXT_MARK)} "
            f"times in {template.user!r}"
        )
    return system, before, after


def _render_one(where: str, source: str, values: Mapping[str, object]) -> str:
    from jinja2 import TemplateError

    try:
        return _environment().from_string(source).render(values)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"{where}: {error}; a template may use text, candidates, candidates_text, descriptions and options"
        ) from None


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # no autoescape: prompts are plain text for a model, not HTML
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
