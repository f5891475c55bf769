"""How people announce, deny and join answers, in the languages of examinations: English, Spanish, French,
Italian, Chinese.

All patterns are for text without accents and in small letters. What they lead to is the business of `letter`.
"""

from __future__ import annotations

import re


def _words(*texts: str) -> frozenset[str]:
    return frozenset(word for text in texts for word in text.split())


# What an answer follows. The words between it and the answer are looked at apart.
CUE = re.compile(
    r"\banswer\b|\bit(?:'s| is)\b|\b(?:correct|best|right|final) (?:option|choice|one)\b|\bconclusion\b"
    r"|\bi(?: would|'d)? (?:choose|pick|select|go with|opt for)\b|\b(?:therefore|thus|hence|so)\b"
    r"|\brespuesta\b|\b(?:opcion|alternativa) (?:correcta|adecuada)\b|\bpor (?:lo )?tanto\b|\basi que\b"
    r"|\breponse\b|\b(?:bonne|meilleure) (?:option|proposition)\b|\bdonc\b"
    r"|\b(?:option|proposition) (?:correcte|exacte)\b"
    r"|\brisposta\b|\bopzione (?:corretta|esatta)\b|\bquindi\b|\bdunque\b"
    r"|答案|正确选项|正确的?是|应选|故选|选择|因此|所以|综上"
    # Not this but that.
    r"|(?:\b(?:not|no|pas|non)\b|不是)[^.\n。]{0,40}?(?:\b(?:but|sino|mais|ma)\b|而是)"
)

# Before an answer: it is named to be turned down.
NOT = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|without|except|excluding|excludes?|excluded|eliminat\w+|unlike"
    r"|rules? out|ruled out|ruling out|rather than|instead of)\b|n't\b"
    r"|\b(?:ni|nunca|excepto|salvo|en lugar de|descart\w+)\b"
    r"|\b(?:pas|jamais|sauf|plutot que|au lieu de|exclu\w*|elimin\w+)\b"
    r"|\b(?:non|ne|tranne)\b"
    r"|[不非没]|排除|除了"
)
# A denial before these is of what stood there: "is not easy, but it is B". Not where both are one: "不是".
TURN = re.compile(
    r"\b(?:but|however|sino|pero|mais|ma|bensi)\b|\brather\b(?! than)|\binstead\b(?! of)|而是|但"
    r"|(?<!no )(?<!non )\b(?:is|are|es|est|e)\b(?!n't)|(?<![不非])是|:"
)
# After an answer: it is turned down.
IS_WRONG = re.compile(
    r"[^.;\n]{0,60}?(?:\b(?:is|are|was|would be|can be|seems|es|esta|est|e)\b(?: \w+)? ?"
    r"\b(?:not|no|pas|incorrect\w*|wrong|false|unlikely|less|excluded|eliminated|ruled out"
    r"|falsa|erronea|descartad\w+|fausse|errone\w*|sbagliata|errata)\b"
    r"|\b(?:is|are|was|would)n't\b|\b(?:no|non|ne|n') ?(?:es|e|est)\b"
    r"|错误|不正确|不对|排除)"
)
# After an answer: it is the right one.
IS_RIGHT = re.compile(
    r"[)\]\"'.,:\s]*(?:[^.;\n]{0,80}?\s)??\b(?:is|seems|remains|would be|must be|es|est|e)\s+"
    r"(?:the|la|el|le|il)?\s*(?:(?:single|only|most|one)\s+)*"
    r"\b(?:correct|right|best|likely|appropriate|answer|correcta|correcto|adecuada"
    r"|correcte|exacte|bonne|meilleure|corretta|esatta)\b"
    r"|\s*(?:选项|项)?[^,。\n不]{0,20}?(?:是|为)?(?:正确|对的)"
)
# Nothing but this between two answers: both are meant, or neither.
AND = re.compile(r"[\s,/()、]*(?:and/or|and|or|nor|y|o|u|ni|et|ou|e|和|或|及|与)?[\s,/()、]*")
# What comes after these begins anew.
CONTRAST = re.compile(r"\b(?:but|rather|sino|mais|ma|bensi)\b|而是")

# Words that may stand between a cue and a bare letter. A longer way round could end in "vitamin C".
FILLERS = _words(
    "is are was be would should must will may the this that question my i it option choice letter answer one",
    "correct best right final most likely appropriate probably definitely clearly therefore thus hence so",
    "then not n t s d neither nor or and but rather instead conclusion because here to in",
    "es seria la el lo las los opcion letra alternativa respuesta correcta correcto adecuada probable mas no",
    "ni sino pero ou y o u a esta pregunta",
    "est serait le les l c proposition lettre reponse exacte correcte bonne plus pas mais ne ce",
    "e sarebbe il opzione lettera risposta esatta corretta giusta non ma bensi",
)
HAN_FILLERS = frozenset("是为应该当选择正确最佳答案选项的故不非而但因此所以综上本题我认定会")
# Words that go on after a letter. Any other makes of an A or an I an article or a pronoun.
AFTER_A_LETTER = _words(
    "is was because since as and or but nor not for with which that due given rather would seems",
    "es porque ya y o pero ni que est car parce et ou mais e perche poiche ma",
)
# Letters that are words of their own.
WORDS = frozenset("AEIOUY")

# What announces a letter wherever it stands.
OPTION_WORD = (
    r"(?:\b(?:option|choice|alternative|letter|opcion|alternativa|letra|proposition|lettre|opzione|lettera)\b"
    r"|选项?)"
)
