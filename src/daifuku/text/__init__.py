"""Prompts to the features that condition the transformer."""

from daifuku.text.encoder import PromptCut, TextCond, TextEncoder, load_text_encoder

__all__ = ["PromptCut", "TextCond", "TextEncoder", "load_text_encoder"]
