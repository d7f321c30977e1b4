"""From an example to token ids: one way, shared by training, evaluation, prediction and serving."""

from fenlei.prompting.chat import ChatFrame
from fenlei.prompting.encode import EncodedPrompt, PromptEncoder
from fenlei.prompting.templates import PRESET_TEMPLATES, PromptTemplate

__all__ = ["PRESET_TEMPLATES", "ChatFrame", "EncodedPrompt", "PromptEncoder", "PromptTemplate"]
