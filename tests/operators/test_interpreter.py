from __future__ import annotations

import json

import pytest

from models.captioning.captioner import ChatCaptioner
from models.captioning.qformer import QFormerCaptioner
from models.captioning.tagger.tagger import Tagger
from models.chat.openai import OpenAIChat
from models.embedding.local import LocalImages, LocalTexts
from models.interests.keywords import Keywords
from models.interests.mining import ChatMiner
from operators.caption import Caption
from operators.embed import EmbedImages, EmbedTexts
from operators.interests import Interests
from operators.interpreter import described, rebuilt
from operators.media.fetch import FetchMedia
from storage.errors import ArtifactError
from storage.media.limits import Limits
from storage.media.sources import Sources

CHAT = OpenAIChat("a model", base_url="http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    "operator",
    [
        FetchMedia("/data", 2, Limits(frames=3), Sources(roots=("/media", "s3://b/m")), given=("caption",)),
        EmbedImages(LocalImages()),
        EmbedTexts(LocalTexts(), joint=True),
        Caption(Tagger(), frames="grid"),
        Caption(QFormerCaptioner()),
        Caption(ChatCaptioner(CHAT)),
        Interests(Keywords()),
        Interests(ChatMiner(CHAT, kinds=("intent", "keyword"))),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_an_operator_is_rebuilt_from_json(operator) -> None:
    assert rebuilt(json.loads(json.dumps(described(operator)))) == operator


def test_nothing_but_operators_and_their_models_is_rebuilt() -> None:
    with pytest.raises(ArtifactError, match="'Popen'"):
        rebuilt({"class": "Caption", "captioner": {"class": "Popen", "args": ["true"]}})
