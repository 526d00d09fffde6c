"""Models whose layout in vLLM is known here. Loads nothing: recipes are checked by it."""

ROW_BY_ROW = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Classes whose own loader only renames, fuses and cuts. Others go through it: it may permute or transform."""
