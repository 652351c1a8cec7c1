"""The published rules of SQuAD a second time, slowly: run_squad.py and evaluate-v1.1.py.

Written from the rules and sharing nothing with bertjax.tasks, to compare with.
"""

import collections
import math
import re
import string


def improve(pieces, start, end, answer):
    """`_improve_answer_span`; None where nothing spells the answer."""
    for new_start in range(start, end + 1):
        for new_end in range(end, new_start - 1, -1):
            if pieces[new_start : new_end + 1] == answer:
                return new_start, new_end
    return None


def positions(context, answer_start, answer, encode):
    """The pieces of a paragraph and those of its answer (None where they do not spell it)."""
    pieces, first_piece, last_piece, word_of = [], [], [], []
    words = context.split(" ")
    for number, word in enumerate(words):
        word_of += [number] * (len(word) + 1)
        first_piece.append(len(pieces))
        pieces += encode(word)
        last_piece.append(len(pieces) - 1)
    start = first_piece[word_of[answer_start]]
    end = last_piece[word_of[answer_start + len(answer) - 1]]
    return pieces, improve(pieces, start, end, encode(answer))


def doc_spans(num_pieces, room, stride):
    spans, start = [], 0
    while start < num_pieces:
        length = min(num_pieces - start, room)
        spans.append((start, length))
        if start + length == num_pieces:
            break
        start += min(length, stride)
    return spans


def is_max_context(spans, current, position):
    best_score, best = None, None
    for index, (start, length) in enumerate(spans):
        end = start + length - 1
        if position < start or position > end:
            continue
        score = min(position - start, end - position) + 0.01 * length
        if best_score is None or score > best_score:
            best_score, best = score, index
    return current == best


def search(windows, n_best, max_answer_length, text_of):
    """`write_predictions` of one question.

    windows: (start logits, end logits, {position: piece of the paragraph}, {position: is max}).
    """
    preliminary = []
    for start_logits, end_logits, piece_of, is_max in windows:

        def best(logits):
            return sorted(range(len(logits)), key=lambda i: logits[i], reverse=True)[:n_best]

        for start in best(start_logits):
            for end in best(end_logits):
                if start not in piece_of or end not in piece_of or not is_max[start]:
                    continue
                if end < start or end - start + 1 > max_answer_length:
                    continue
                text = text_of(piece_of[start], piece_of[end])
                preliminary.append((text, start_logits[start], end_logits[end]))
    preliminary.sort(key=lambda p: p[1] + p[2], reverse=True)
    seen, nbest = set(), []
    for candidate in preliminary:
        if len(nbest) >= n_best:
            break
        if candidate[0] not in seen:
            seen.add(candidate[0])
            nbest.append(candidate)
    highest = max((p[1] + p[2] for p in nbest), default=0.0)
    weights = [math.exp(p[1] + p[2] - highest) for p in nbest]
    return [(*p, weight / sum(weights)) for p, weight in zip(nbest, weights, strict=True)]


def normalize_answer(text):
    text = text.lower()
    text = "".join(character for character in text if character not in set(string.punctuation))
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def evaluate(dataset, predictions):
    f1 = exact = total = 0
    for article in dataset:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                total += 1
                if qa["id"] not in predictions:
                    continue
                best_f1 = best_exact = 0.0
                for truth in (answer["text"] for answer in qa["answers"]):
                    p = normalize_answer(predictions[qa["id"]])
                    t = normalize_answer(truth)
                    best_exact = max(best_exact, float(p == t))
                    p, t = p.split(), t.split()
                    same = sum((collections.Counter(p) & collections.Counter(t)).values())
                    if same:
                        precision, recall = same / len(p), same / len(t)
                        best_f1 = max(best_f1, 2 * precision * recall / (precision + recall))
                f1 += best_f1
                exact += best_exact
    return {"exact_match": 100.0 * exact / total, "f1": 100.0 * f1 / total}
