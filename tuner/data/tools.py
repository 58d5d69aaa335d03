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
    after_words: str = ""
    """What stands between words of an answer and the calls that follow them."""


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


# The very text of LLaMA-Factory 0.9.5, which no model's own template fixes: an adapter taught there meets the same prompt
# here. It stands right behind the system text.


def _default_describe(tools: Sequence[Any], system: str) -> str:
    bare = [_function(tool) for tool in tools]
    described = [tool if isinstance(tool, Mapping) else {"name": str(tool)} for tool in bare]
    names = ", ".join(str(tool.get("name", "")) for tool in described)
    return (
        f"{system}You have access to the following tools:\n{''.join(map(_default_tool, described))}"
        f"Use the following format if using a tool:\n```\nAction: tool name (one of [{names}])\n"
        "Action Input: the input to the tool, in a JSON format representing the kwargs "
        '(e.g. ```{"input": "hello world", "num_beams": 5}```)\n```\n'
    )


def _default_tool(tool: Mapping[str, Any]) -> str:
    parameters = _object(tool.get("parameters"))
    required = parameters.get("required") or ()
    listed = _object(parameters.get("properties")).items()
    arguments = "".join(_default_argument(name, _object(about), name in required) for name, about in listed)
    about = tool.get("description", "")
    return f"> Tool Name: {tool.get('name', '')}\nTool Description: {about}\nTool Args:\n{arguments}\n"


def _default_argument(name: str, about: Mapping[str, Any], required: bool) -> str:
    needed = ", required" if required else ""
    choices = ", ".join(map(str, about.get("enum") or ()))
    enum = f", should be one of [{choices}]" if choices else ""
    item = _object(about.get("items"))
    items = f", where each item should be {item.get('type', '')}" if item else ""
    return f"  - {name} ({about.get('type', '')}{needed}): {about.get('description', '')}{enum}{items}\n"


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


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
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
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


# --- qwen3_5 -------------------------------------------------------------------------------------------------------

_QWEN3_5_RULES = """

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within \
<tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell \
the user about function calls
</IMPORTANT>"""


def _qwen3_5_describe(tools: Sequence[Any], system: str) -> str:
    listed = "".join("\n" + _dumps(_wrapped(t)) for t in tools)
    opening = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
    return f"{opening}{listed}\n</tools>{_QWEN3_5_RULES}" + (f"\n\n{system}" if system else "")


def _qwen3_5_call(calls: Sequence[Mapping[str, Any]]) -> str:
    def said(value: Any) -> str:
        return _dumps(value) if isinstance(value, dict | list) else str(value)

    def written(call: Mapping[str, Any]) -> str:
        given = "".join(f"<parameter={k}>\n{said(v)}\n</parameter>\n" for k, v in call["arguments"].items())
        return f"<tool_call>\n<function={call['name']}>\n{given}</function>\n</tool_call>"

    return "\n".join(map(written, calls))


# --- glm4_moe ------------------------------------------------------------------------------------------------------


def _glm4_moe_describe(tools: Sequence[Any], system: str) -> str:
    listed = "".join(_dumps(_wrapped(t)) + "\n" for t in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}</tools>\n\n"
        "For each function call, output the function name and arguments within the following XML format:\n"
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
        "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>"
        + (f"<|system|>\n{system}" if system else "")
    )


def _glm4_moe_call(calls: Sequence[Mapping[str, Any]]) -> str:
    def written(call: Mapping[str, Any]) -> str:
        given = "".join(
            f"<arg_key>{k}</arg_key>\n<arg_value>{v if isinstance(v, str) else _dumps(v)}</arg_value>\n"
            for k, v in call["arguments"].items()
        )
        return f"\n<tool_call>{call['name']}\n{given}</tool_call>"

    return "".join(map(written, calls))


# --- lfm2 ----------------------------------------------------------------------------------------------------------


def _lfm2_describe(tools: Sequence[Any], system: str) -> str:
    listed = ", ".join(_dumps(_function(t)) for t in tools)
    return f"{system}{chr(10) if system else ''}List of tools: <|tool_list_start|>[{listed}]<|tool_list_end|>"


def _lfm2_call(calls: Sequence[Mapping[str, Any]]) -> str:
    def said(value: Any) -> str:
        if isinstance(value, str):
            for raw, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
                value = value.replace(raw, escaped)
            return f"'{value}'"
        return _dumps(value) if isinstance(value, dict | list) else str(value)

    def written(call: Mapping[str, Any]) -> str:
        return f"{call['name']}({', '.join(f'{k}={said(v)}' for k, v in call['arguments'].items())})"

    return f"<|tool_call_start|>[{', '.join(map(written, calls))}]<|tool_call_end|>"


_RESPONSES = "\n</tool_response>\n<tool_response>\n"
FORMATS: dict[str, ToolFormat] = {
    "default": ToolFormat(_default_describe, _default_call, after_words="\n"),
    "qwen": ToolFormat(_qwen_describe, _qwen_call, between=_RESPONSES, after_words="\n"),
    "qwen3_5": ToolFormat(_qwen3_5_describe, _qwen3_5_call, between=_RESPONSES, after_words="\n\n"),
    "glm4": ToolFormat(_glm4_describe, _glm4_call),
    "glm4_moe": ToolFormat(_glm4_moe_describe, _glm4_moe_call, between=_RESPONSES),
    "lfm2": ToolFormat(
        _lfm2_describe,
        _lfm2_call,
        between="<|tool_response_end|><|im_end|>\n<|im_start|>tool\n<|tool_response_start|>",
    ),
    "mistral": ToolFormat(_mistral_describe, _mistral_call, apart=True),
    "llama3": ToolFormat(_llama3_describe, _llama3_call),
}
