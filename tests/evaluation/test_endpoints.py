"""Endpoints against sentences: planted cases of each kind."""

import pytest

from espnet_speechllm_xl.corpus.ctm import Word
from espnet_speechllm_xl.evaluation.endpoints import EndedSegment, Sentence, judge_endpoints
from espnet_speechllm_xl.evaluation.nonspeech_report import endpoint_figures, endpoints_table

SENTENCES = [Sentence(2, 4), Sentence(8, 9), Sentence(13, 16)]


def segment(ended, *middles):
    return EndedSegment(tuple(Word("w", middle - 0.1, middle + 0.1) for middle in middles), ended)


GOOD = [segment(6, 2.1, 3.9), segment(10.5, 8.5), segment(18, 13.2, 15, 15.9)]


def counts(found):
    return found.silent, found.cut, found.late, len(found.delays), found.stray


@pytest.mark.parametrize(
    "segments, expected",
    [
        (GOOD, (0, 0, 0, 3, 0)),
        ([], (3, 0, 0, 0, 0)),
        (GOOD[:1] + GOOD[2:], (1, 0, 0, 2, 0)),
        ([segment(6.6, 2.1, 3.9), *GOOD[1:]], (0, 0, 1, 2, 0)),  # 2.6 s behind its end
        ([segment(10.5, 2.1, 3.9, 8.5), GOOD[2]], (0, 0, 2, 1, 0)),  # one segment for two sentences
        ([segment(3, 2.1), segment(6, 3.9), *GOOD[1:]], (0, 1, 0, 2, 0)),
        ([segment(3, 2.1), *GOOD[1:]], (0, 1, 0, 2, 0)),  # the rest was never written, but the endpoint was inside
        ([GOOD[0], segment(7, 6), *GOOD[1:]], (0, 0, 0, 3, 1)),  # a word in a pause, with an endpoint of its own
        ([segment(6, 1.6, 4.4), *GOOD[1:]], (0, 0, 0, 3, 0)),  # words half a second beside the sentence are its own
        ([segment(6, 1.4, 4.6, 3), *GOOD[1:]], (0, 0, 0, 3, 2)),
    ],
)
def test_each_sentence_is_judged_by_the_segments_with_its_words(segments, expected):
    found = judge_endpoints(SENTENCES, segments, limit=2.5)
    assert counts(found) == expected
    assert found.sentences == 3


def test_figures_and_table():
    found = judge_endpoints(SENTENCES, GOOD, limit=2.5)
    assert found.delays == (2, 1.5, 2)
    figures = endpoint_figures(found)
    assert figures == {"sentences": 3, "on_time": 3, "silent": 0, "cut": 0, "late": 0, "stray": 0, "p50_seconds": 2}
    none = endpoint_figures(judge_endpoints(SENTENCES, GOOD[:1], limit=1))
    rows = endpoints_table([{"audio": "a", **figures}, {"audio": "b", **none}])
    assert rows[2] == "|a|3|100.0|0.0|0.0|0.0|2.00|0|"
    assert rows[3] == "|b|3|0.0|33.3|0.0|66.7|-|0|"
