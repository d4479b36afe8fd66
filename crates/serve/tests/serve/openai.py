"""What a client of OpenAI's API does, against the server whose address is the first argument."""

import sys

import openai

address = sys.argv[1] + "/v1"
client = openai.OpenAI(base_url=address, api_key="user-key", max_retries=0)
names = [model.id for model in client.models.list()]
assert names == ["base", "lora", "prompt", "team/houlsby"], names
assert client.models.retrieve("lora").id == "lora"

whole = client.completions.create(model="lora", prompt="Hello", max_tokens=12, temperature=0, logprobs=2)
assert whole.choices[0].finish_reason in ("stop", "length")
assert whole.usage.prompt_tokens == 5 and whole.usage.total_tokens == 5 + whole.usage.completion_tokens
assert len(whole.choices[0].logprobs.tokens) == len(whole.choices[0].logprobs.token_logprobs)
pieces = client.completions.create(model="lora", prompt="Hello", max_tokens=12, temperature=0, stream=True)
assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text

messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
settings = dict(messages=messages, max_completion_tokens=20, temperature=0.7, seed=3, n=2)
for model in names:
    chat = client.chat.completions.create(model=model, logprobs=True, top_logprobs=3, **settings)
    assert [choice.index for choice in chat.choices] == [0, 1]
    assert chat.choices[0].message.role == "assistant"
    assert all(len(token.top_logprobs) == 3 for token in chat.choices[0].logprobs.content)
    texts, usage = ["", ""], None
    stream = client.chat.completions.create(model=model, stream=True, stream_options={"include_usage": True}, **settings)
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage or usage
    assert texts == [choice.message.content for choice in chat.choices], (model, texts)
    assert usage.completion_tokens == chat.usage.completion_tokens

form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {
    "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}}}
answer = client.chat.completions.create(model="prompt", messages=messages, response_format=form, max_tokens=50)
assert answer.choices[0].message.content in ('{"ok": true}', '{"ok": false}'), answer

vectors = client.embeddings.create(model="lora", input=["Hello", "World"])
assert [len(vector.embedding) for vector in vectors.data] == [32, 32]
floats = client.embeddings.create(model="lora", input="Hello", encoding_format="float")
assert all(abs(a - b) < 1e-6 for a, b in zip(floats.data[0].embedding, vectors.data[0].embedding))


def refused(kind, **body):
    try:
        client.completions.create(**{"model": "base", "prompt": "x", **body})
    except kind as error:
        return error
    raise AssertionError(f"{body} was not refused with {kind}")


assert refused(openai.NotFoundError, model="nobody").param == "model"
assert refused(openai.BadRequestError, temperature=-1).param == "temperature"
assert "typo" in refused(openai.BadRequestError, extra_body={"typo": 1}).message
wrong = openai.OpenAI(base_url=address, api_key="wrong-key", max_retries=0)
try:
    wrong.models.list()
    raise AssertionError("a wrong key was taken")
except openai.AuthenticationError:
    pass
print("content")
