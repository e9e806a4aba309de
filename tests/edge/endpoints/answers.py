"""Answers of the hub that use every field, for tests of what they look like in a dialect."""

from google.protobuf import text_format

from onegate.common.v1 import token_usage_pb2
from onegate.router.v1 import chat_pb2

FULL_ANSWER = text_format.Parse(
    r"""
    id: "chatcmpl-9" created_unix_s: 1700000000 model: "gpt-4o" system_fingerprint: "fp_1"
    service_tier: "standard" extra_json: "{\"mood\":1,\"id\":\"other\"}"
    choices {
      message {
        role: ROLE_ASSISTANT extra_json: "{\"prefix\":true}"
        parts { thinking { text: "Hm. " signature: "s1" } }
        parts { thinking { redacted_data: "e" extra_json: "{\"id\":\"r1\"}" } }
        parts { thinking { text: "sum"
          extra_json: "{\"type\":\"reasoning.summary\",\"summary\":\"sum\"}" } }
        parts { text { text: "See " annotations { url_citation {
          url: "https://x/y" title: "X" start_index: 0 end_index: 3 } } } }
        parts { text { text: "there." annotations { opaque_json: "{\"type\":\"file\"}" } } }
        parts { opaque_json: "{\"type\":\"server_tool_use\"}" }
        parts { image { source { data: "\x89PNG" media_type: "image/png" } } }
        parts { image { source { url: "https://x/z.png" } } }
        parts { image { source { data: "x" } } }
        parts { audio { source { data: "RIFF" } audio_id: "a1" transcript: "la"
                        expires_at_unix_s: 9 } }
        parts { tool_call { id: "1" name: "f" arguments: "{}" kind: TOOL_KIND_FUNCTION
                            thought_signature: "\xff\xfe" } extra_json: "{\"index\":0}" }
        parts { tool_call { id: "2" name: "c" arguments: "x" kind: TOOL_KIND_CUSTOM } }
      }
      finish_reason: FINISH_REASON_TOOL_CALLS native_finish_reason: "tool_use"
      extra_json: "{\"content_filter_results\":{}}"
      logprobs {
        content { token: "S" logprob: -0.5 utf8: "S" top { token: "T" logprob: -1 } }
      }
    }
    choices { index: 1 message { parts { refusal { text: "No" } } parts { refusal { text: "." } } }
              finish_reason: FINISH_REASON_CONTENT_FILTER logprobs { refusal { token: "No" } } }
    choices { index: 2 message { } finish_reason: FINISH_REASON_LENGTH }
    choices { index: 3 message { parts { text { text: "?" } } } }
    """,
    chat_pb2.ChatAnswer(),
)

METERED = chat_pb2.Metered(
    tokens=token_usage_pb2.TokenUsage(
        input_tokens=100,
        cached_input_tokens=10,
        cache_write_tokens=5,
        cache_write_1h_tokens=2,
        input_audio_tokens=3,
        input_image_tokens=4,
        output_tokens=50,
        reasoning_tokens=20,
        output_audio_tokens=1,
        output_image_tokens=6,
        accepted_prediction_tokens=7,
        rejected_prediction_tokens=8,
        extra_json=b'{"inference_geo":"eu","cost":9,"prompt_tokens":1}',
    ),
    cost_nano_usd=1_234_567_890,
)
