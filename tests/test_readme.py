"""What the README shows is what happens: the request it makes gets the answer it prints."""

import json
import re
from pathlib import Path

from sandwich import LLM, SamplingParams


def test_the_request_of_the_readme_gets_its_answer(checkout: Path) -> None:
    readme = (checkout / "README.md").read_text()
    found = re.search(r"/v1/chat/completions .* -d '(\{.*?\})'", readme, re.DOTALL)
    assert found
    request = json.loads(found[1])
    params = SamplingParams(temperature=request["temperature"], max_tokens=request["max_tokens"])
    with LLM(request["model"]) as llm:
        [result] = llm.chat(request["messages"], params)
    assert f'"content":{json.dumps(result.outputs[0].text)}' in readme
    usage = {
        "prompt_tokens": len(result.prompt_token_ids),
        "completion_tokens": len(result.outputs[0].token_ids),
    }
    assert json.dumps(usage, separators=(",", ":"))[:-1] in readme


def test_the_files_the_readme_links_to_exist(checkout: Path) -> None:
    for page in (checkout / "README.md", *(checkout / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
