"""Text embeddings from an OpenAI-compatible endpoint: a vLLM or TEI server of one's own, or a hosted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from pydantic import PositiveInt

from models.chat.base import Failure
from models.chat.openai_client import Endpoint, gather
from models.embedding.embedder import Embeddings
from storage.errors import UserError
from storage.identity import speed


@dataclass(frozen=True)
class OpenAIEmbeddings(Endpoint):
    """A model asked over HTTP: many texts to a request, several requests at a time.

    A request that is refused is halved until the texts that cannot be embedded stand alone.

    Attributes:
        width: components of a vector.
        request_width: ask for vectors shortened to `width`, by models that were trained for it (Kusupati et al. 2022,
            Matryoshka representations).
        max_chars: longer texts are cut to it, since endpoints refuse what exceeds the model's tokens.
        batch_size: texts to a request.
    """

    width: PositiveInt
    _: KW_ONLY
    request_width: bool = False
    max_chars: PositiveInt = 8_000
    batch_size: PositiveInt = speed(64)
    concurrency: PositiveInt = speed(8)

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        """Embeds texts to float32 [N, width].

        A text without a vector has one of the codes `model_timeout`, `model_unavailable`, `model_rate_limited` (all
        after retries) and `model_refused`.

        Raises:
            UserError: the key is missing or refused, the endpoint does not serve the model, or its vectors have
                another width.
        """
        if images is not None:
            raise UserError(f"{self.model} is asked for texts alone: set joint to false.")
        cut = [text[: self.max_chars] for text in texts]
        batches = [cut[start : start + self.batch_size] for start in range(0, len(cut), self.batch_size)]
        answers = [answer for batch in gather(self._embed, batches, self.concurrency) for answer in batch]
        failures = {row: answer for row, answer in enumerate(answers) if isinstance(answer, Failure)}
        nothing = np.zeros(self.width, np.float32)
        vectors = np.array([nothing if isinstance(answer, Failure) else answer for answer in answers], np.float32)
        return Embeddings(vectors.reshape(-1, self.width), failures)

    async def _embed(self, texts: list[str]) -> list[np.ndarray | Failure]:
        answer = await self._request(texts)
        if not isinstance(answer, Failure):
            return list(answer)
        if len(texts) == 1 or answer.code != "model_refused":  # other failures are no text's fault
            return [answer] * len(texts)
        half = len(texts) // 2
        return [*await self._embed(texts[:half]), *await self._embed(texts[half:])]

    async def _request(self, texts: list[str]) -> np.ndarray | Failure:
        from openai import omit

        dimensions = self.width if self.request_width else omit
        try:
            answer = await self.client().embeddings.create(model=self.model, input=texts, dimensions=dimensions)
            found = sorted(answer.data, key=lambda row: row.index)
            vectors = np.array([row.embedding for row in found], np.float32)
            if vectors.ndim != 2 or len(vectors) != len(texts):
                raise ValueError(f"{len(found)} vectors for {len(texts)} texts")
        except Exception as error:  # noqa: BLE001 - sorted by the client's module, which raises what it does not know
            return self.failure(error)
        if vectors.shape[1] != self.width:
            raise UserError(f"{self.model} gives vectors of width {vectors.shape[1]}, not {self.width}: set its width.")
        return vectors
