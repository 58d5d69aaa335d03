"""How tools are described to a model and how it calls them, by the format's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class ToolFormat(NamedTuple):
    """`describe(tools, system)` gives the whole system text; `call` writes the calls of one answer.

    With `apart` the description is no system text but stands by itself before the first turn.
    """

    describe: Callable[[Sequence[Any], str], str]
    call: Callable[[Sequence[Mapping[str, Any]]], str]
    between: str = "\n"
    """What stands between the results of several calls."""
    apart: bool = False


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _function(tool: Any) -> Any:
    """A tool's bare description, whichever way it was wrapped."""
    return (
        tool.get("function", tool) if isinstance(tool, Mapping) and tool.get("type") == "function" else tool
    )


def _wrapped(tool: Any) -> Any:
    bare = isinstance(tool, Mapping) and tool.get("type") != "function"
    return {"type": "function", "function": tool} if bare else tool


# --- default -------------------------------------------------------------------------------------------------------


def _default_describe(tools: Sequence[Any], system: str) -> str:
    lines = ["These tools can be used:"]
    names = []
    for tool in map(_function, tools):
        names.append(str(tool.get("name", "")) if isinstance(tool, Mapping) else str(tool))
        lines.append(f"- {_dumps(tool)}")
    lines.append("To use one, answer with these two lines and nothing else:")
    lines.append(f"Action: the tool's name, one of [{', '.join(names)}]")
    lines.append("Action Input: its arguments as one JSON object")
    return (system + "\n\n" if system else "") + "\n".join(lines)


def _default_call(calls: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"Action: {c['name']}\nAction Input: {_dumps(c['arguments'])}" for c in calls)


# --- qwen ----------------------------------------------------------------------------------------------------------


def _qwen_describe(tools: Sequence[Any], system: str) -> str:
    listed = "".join("\n" + _dumps(_wrapped(t)) for t in tools)
    return (
        (system + "\n\n" if system else "")
        + "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        + "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
        + listed
        + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        + '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
        + "<args-json-object>}\n</tool_call>"
    )


def _qwen_call(calls: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{c["name"]}", "arguments": {_dumps(c["arguments"])}}}\n</tool_call>'
        for c in calls
    )


# --- llama3 --------------------------------------------------------------------------------------------------------


def _llama3_describe(tools: Sequence[Any], system: str) -> str:
    listed = "".join(json.dumps(_wrapped(t), ensure_ascii=False, indent=4) + "\n\n" for t in tools)
    return (
        "You have access to the following functions. To call a function, please respond with JSON for a function "
        'call. Respond in the format {"name": function name, "parameters": dictionary of argument name and its '
        f"value}}. Do not use variables.\n\n{listed}{system}"
    )


def _llama3_call(calls: Sequence[Mapping[str, Any]]) -> str:
    listed = [{"name": c["name"], "parameters": c["arguments"]} for c in calls]
    return _dumps(listed[0] if len(listed) == 1 else listed)


# --- glm4 ----------------------------------------------------------------------------------------------------------

_GLM4_SYSTEM = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。"
)


def _glm4_describe(tools: Sequence[Any], system: str) -> str:
    listed = "".join(
        f"\n\n## {f['name']}\n\n{json.dumps(f, ensure_ascii=False, indent=4)}\n"
        "在调用上述函数时，请使用 Json 格式表示调用的参数。"
        for f in map(_function, tools)
    )
    return f"{system or _GLM4_SYSTEM}\n\n# 可用工具{listed}"


def _glm4_call(calls: Sequence[Mapping[str, Any]]) -> str:
    return "<|assistant|>".join(f"{c['name']}\n{_dumps(c['arguments'])}" for c in calls)


# --- mistral -------------------------------------------------------------------------------------------------------


def _mistral_describe(tools: Sequence[Any], system: str) -> str:
    return f"[AVAILABLE_TOOLS] {_dumps([_wrapped(t) for t in tools])}[/AVAILABLE_TOOLS]"


def _mistral_call(calls: Sequence[Mapping[str, Any]]) -> str:
    return _dumps([{"name": c["name"], "arguments": c["arguments"]} for c in calls])


FORMATS: dict[str, ToolFormat] = {
    "default": ToolFormat(_default_describe, _default_call),
    "qwen": ToolFormat(_qwen_describe, _qwen_call, between="\n</tool_response>\n<tool_response>\n"),
    "glm4": ToolFormat(_glm4_describe, _glm4_call),
    "mistral": ToolFormat(_mistral_describe, _mistral_call, apart=True),
    "llama3": ToolFormat(_llama3_describe, _llama3_call),
}
