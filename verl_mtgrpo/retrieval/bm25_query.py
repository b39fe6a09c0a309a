"""Find the best passages for a bag of words, exactly, without looking at every passage.

The engine's Python interface scores every passage that contains any word of a query. On a large corpus most of
that time goes into words that most passages contain and that matter least. So the words are split (MaxScore: Turtle
and Flood, "Query Evaluation: Strategies and Optimizations", 1995, https://doi.org/10.1016/0306-4573(95)00020-H):

    1. find the best C passages by the rare words alone; the last of them has the score s
    2. add their scores for the frequent words
    3. a passage that is not among the C scores at most s + Σ_w max_w over the frequent words w. If that is
       below the k-th best sum, the best k are found; otherwise repeat with a larger C, and at last with all words
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tantivy

    Hit = tuple[float, tantivy.DocAddress]

_MAX_TIES = 256
_KNOWN_WORDS = 100_000
_CANDIDATES = (20, 100)
_FEW_POSTINGS = 20_000
"""Below this many occurrences (0.1 ms) the split costs more than it saves."""
_FREQUENT_SHARES = (0.1, 0.05)
"""Share of the highest possible score that the frequent words may have, tried in turn: more is faster, but proves less
often. Measured over a million passages, 600 questions: this pair has the lowest 99th percentile of those tried (the
median moves by 5 % between 0.06 and 0.14)."""


class WordSearch:
    """Searches the field ``body`` of an opened index."""

    def __init__(self, searcher: tantivy.Searcher, schema: tantivy.Schema) -> None:
        self._searcher = searcher
        self._schema = schema
        # Reads ordinals of many hits at once; from tantivy 0.27 on. Without it all words are searched at once.
        self._can_split = hasattr(searcher, "fast_field_values")
        self._highest: dict[str, float] = {}

    def best(self, words: Sequence[str], k: int) -> list[Hit]:
        """Return the best ``k`` hits and those that tie with the last one (256 at most)."""
        counts = Counter(words)
        frequency = {word: self._searcher.doc_freq("body", word) for word in counts}
        known = {word: count for word, count in counts.items() if frequency[word]}
        if not known:
            return []
        if self._can_split and sum(frequency.values()) > _FEW_POSTINGS:
            found = self._best_by_split(known, frequency, k)
            if found is not None:
                return found
        return self._best_of_all(known, k)

    def _best_by_split(self, counts: dict[str, int], frequency: dict[str, int], k: int) -> list[Hit] | None:
        """Return the same hits, found by the rare words first; None if that does not prove them to be the best."""
        highest = {word: count * self._highest_score(word) for word, count in counts.items()}
        often_first = sorted(counts, key=lambda word: -frequency[word])
        tried = 0
        for share in _FREQUENT_SHARES:
            budget, frequent = share * sum(highest.values()), dict[str, int]()
            for word in often_first:
                budget -= highest[word]
                if budget < 0:
                    break
                frequent[word] = counts[word]
            if frequent and len(frequent) not in (tried, len(counts)):
                tried = len(frequent)
                rare = {word: count for word, count in counts.items() if word not in frequent}
                found = self._best_with_rest(rare, frequent, sum(highest[word] for word in frequent), k)
                if found is not None:
                    return found
        return None

    def _best_with_rest(self, rare: dict[str, int], frequent: dict[str, int], rest: float, k: int) -> list[Hit] | None:
        """Carry out steps 1 to 3 for one split; ``rest`` is the most that the frequent words can add."""
        hits = self._searcher.search(self._any_of(rare), _CANDIDATES[-1], False).hits
        for limit in _CANDIDATES:
            found = self._with_words(hits[:limit], frequent)
            if len(found) < k or k > limit:
                continue
            last = rank_score(found[k - 1][0])
            if last > rank_score(hits[:limit][-1][0] + rest) or (len(hits) < limit and last > rank_score(rest)):
                return [hit for hit in found if rank_score(hit[0]) >= last]
        return None

    def _with_words(self, hits: list[Hit], words: dict[str, int]) -> list[Hit]:
        """Return ``hits`` with the scores of ``words`` added, best first."""
        import tantivy

        must, should = tantivy.Occur.Must, tantivy.Occur.Should
        ordinals = self._searcher.fast_field_values("ordinal", [address for _, address in hits])
        wanted = [tantivy.Query.term_query(self._schema, "ordinal", number, "basic") for number in ordinals]
        query = tantivy.Query.boolean_query([(should, term) for term in wanted])
        query = tantivy.Query.const_score_query(query, 0.0)
        for word, count in words.items():
            # One inside the other: each word is then looked up at the wanted passages only.
            query = tantivy.Query.boolean_query([(must, query), (should, self._term(word, count))])
        added = {(at.segment_ord, at.doc): more for more, at in self._searcher.search(query, len(hits), False).hits}
        summed = [(score + added[at.segment_ord, at.doc], at) for score, at in hits]
        return sorted(summed, key=lambda hit: -hit[0])

    def _best_of_all(self, counts: dict[str, int], k: int) -> list[Hit]:
        query, total = self._any_of(counts), self._searcher.num_docs
        k = min(k, total)
        limit = min(k + 8, total)
        while True:
            hits = self._searcher.search(query, limit, False).hits
            if len(hits) <= k:
                return hits
            last = rank_score(hits[k - 1][0])
            if len(hits) < limit or limit in (total, k + _MAX_TIES) or rank_score(hits[-1][0]) < last:
                return [hit for hit in hits if rank_score(hit[0]) >= last]
            limit = min(2 * limit, k + _MAX_TIES, total)

    def _any_of(self, counts: dict[str, int]) -> tantivy.Query:
        import tantivy

        terms = [(tantivy.Occur.Should, self._term(word, count)) for word, count in counts.items()]
        return tantivy.Query.boolean_query(terms)

    def _term(self, word: str, count: int) -> tantivy.Query:
        import tantivy

        term = tantivy.Query.term_query(self._schema, "body", word, "freq")
        return term if count == 1 else tantivy.Query.boost_query(term, float(count))

    def _highest_score(self, word: str) -> float:
        """Return max_w, the most that one word can add to a score; looked up once (two threads may both look it up)."""
        known = self._highest.get(word)
        if known is None:
            if len(self._highest) >= _KNOWN_WORDS:
                self._highest.clear()
            (best,) = self._searcher.search(self._term(word, 1), 1, False).hits
            known = self._highest[word] = best[0] * (1 + 1e-5)  # sums of floats may exceed the sum of maxima
        return known


def rank_score(score: float) -> float:
    """Return the score without its last bits, which depend on the order in which its terms were summed."""
    return float(f"{score:.5g}")
