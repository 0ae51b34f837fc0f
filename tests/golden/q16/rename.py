"""Makes `wordcloud_stats.json` of this folder from the full golden: `python3 rename.py FULL_FOLDER`. Needs wordcloud 1.9.6.

Some words give way to harmless ones. The chi-square numbers do not depend on the words and stay as they are; the counts of the text
are taken by wordcloud again and must be the old ones under the new names.
"""

import json
import pathlib
import re
import sys

import wordcloud

NEW = {
    "gun": "cup", "guns": "cups", "weapon": "spoon", "blood": "milk", "fire": "lamp", "snake": "scarf", "child": "baker",
    "man": "cook", "men": "women", "street": "garden",
}


def rename(value):
    if isinstance(value, dict):
        return {rename(k): rename(v) for k, v in value.items()}
    if isinstance(value, str):
        return re.sub(r"\w+", lambda word: NEW.get(word[0], word[0]), value)
    return value


def counts(text, **options):
    stop_words = set(wordcloud.STOPWORDS)
    return wordcloud.WordCloud(stopwords=stop_words, **options).process_text(text)


old = json.loads((pathlib.Path(sys.argv[1]) / "wordcloud_stats.json").read_text())
new = {**old, "chi2": rename(old["chi2"]), "word_counts": rename(old["word_counts"])}
text = new["word_counts"]["text"]
assert sorted(wordcloud.STOPWORDS) == old["stopwords"]
assert counts(text, collocations=False) == new["word_counts"]["unigrams"]
for threshold in (30, 1):
    assert counts(text, collocation_threshold=threshold) == new["word_counts"][f"with_bigrams_threshold{threshold}"]
path = pathlib.Path(__file__).parent / "wordcloud_stats.json"
path.write_text(json.dumps(new, indent=0) + "\n")
