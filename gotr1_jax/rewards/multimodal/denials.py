"""Plain denials: sentences by which a model says that a thing is not in the image.

Asked for the boxes of what is not there, models deny it in words instead of writing an empty list.
Only English, and only a sentence whose whole form denies: "There is no cat in the image." A mere
mention, a doubt, a place ("no cat on the left") or an exception ("no other cat") does not.
"""

from __future__ import annotations

import re

_MOST = 1000  # characters of a denial with what follows
_LONGEST = 240  # of the denial alone
_MOST_STARTS = 8  # at which it may begin
_NEGATIVE = re.compile(
    r"\b(?:no|not|none|nothing|nowhere|neither|zero|0|unable|absent|missing|cannot|non-?existent)\b|n['’]t\b",
    re.IGNORECASE,
)
_LONG_WORD = re.compile(r"\w{40}")
_IMAGE = (
    r"(?:image|picture|photo(?:graph)?|scene|frame|view|painting|illustration|drawing|screenshot|"
    r"canvas|artwork|input|visual)s?"
)
_THE_IMAGE = (
    rf"(?:the|this|that|your|these) (?:(?:given|provided|supplied|shown|attached|current|"
    rf"entire|whole|above|generated|input|uploaded) ){{0,3}}{_IMAGE}"
    r"(?: (?:you |that you |you have )?(?:provided|shared|sent|gave|given|above|uploaded|"
    r"attached))?"
)
_PLACE = (
    rf"(?: (?:anywhere|here|there|at all|present|visible|shown|depicted|displayed|found|seen|"
    rf"detected|"
    rf"pictured|identified|located|featured|included|to be (?:seen|found|detected|located|boxed)|"
    rf"that (?:is|are|can be) (?:visible|present|shown|seen|found)|that I can see|"
    rf"(?:in|within|on|from|inside|throughout) {_THE_IMAGE}|in (?:view|it)|"
    rf"to (?:detect|locate|find|box|mark)|"
    rf"matching the (?:description|name|query)))*"
)
# What is denied: at most eight words, none of which says where, how many more, or how sure.
_NOT_IN_NAME = (
    r"(?:left|right|top|bottom|upper|lower|foreground|background|corner|side|cent(?:er|re)|middle|"
    r"other|others|another|else|more|additional|second|further|longer|only|fully|entire|entirely|"
    r"complete|completely|just|but|except|besides|apart|unless|without|if|not|no|less|"
    r"there|\w+n['’]t|missing|difficulty|trouble|doubt|doubts|question|need|reason|way|ways|"
    r"problem|problems|issue|issues|point|mistake|denying|"
    r"mistaking|telling|certainty|guarantee|difference|exact|precise|clear|clearly|clearer|confidence|"
    rf"{_IMAGE}|boxes|bounding|coordinates?|information|context|json|answers?|list of|"
    r"sure|certain|sense|use|room|whole|worry|worries|escape|wonder|matter|chance|hiding|secret|shortage|lack|ability|"
    r"access|is|are|was|were|it|that|which|who|because|and then|might|may|could|would|should|"
    r"on|under|beside|behind|near|next|between|above|below|over|around|against|beneath|"
    r"located|standing|sitting|lying|outside|beyond|than)\b"
)
# One way to read each word: with two, eight words would have hundreds of thousands.
_WORD = rf"(?!{_NOT_IN_NAME})[\w'’\"&/+.-]*\w['’\"]*"
_NAME = rf"(?:{_WORD})(?:,? {_WORD}){{0,7}}?"
_ANY = (
    r"(?:(?:any|a|an|the|such|of|single|even one|even a|visible|discernible|recogni[sz]able|"
    r"identifiable|signs? of|trace of|evidence of|instances? of|examples? of|"
    r"objects? (?:called|named|matching|labell?ed|that match(?:es)?)|thing (?:called|named)) ){0,4}"
)
_THING = rf"({_ANY}{_NAME})"
_NOT = r"(?:not|n't|n’t)"
_SEE = r"(?:see|find|detect|spot|locate|identify|recogni[sz]e|observe|make out|discover|notice)"
_SEEN = (
    r"(?:seen|found|detected|spotted|located|identified|recogni[sz]ed|observed|visible|present|"
    r"shown|depicted|pictured|displayed|included|featured|there|discernible|in view)"
)
_SHOW = r"(?:show|contain|include|depict|have|feature|display|portray|present|hold)"
_SHOWS = r"(?:shows|contains|includes|depicts|has|features|displays|portrays|presents|holds)"
_BE = r"(?:is|are|was|were)"
_AUX = r"(?:do|does|did|can|could|ca|will|would|wo)"
_I = r"(?:I|we|one)"

_NEVER = rf"(?: |(?=n)){_NOT}"  # does not, doesn't
_SAW = rf"(?:{_SEE}|saw|found|detected|spotted|located|identified|observed)"
_FORMS = (
    # There is no cat. There isn't any cat. There's no sign of a cat.
    rf"there(?: {_BE}|['’]s|['’]re| exists?| appears? to be| seems? to be) (?:no|not any|not an?|"
    rf"not a single|zero|0|nothing like|no such|none of the|neither) {_THING}{_PLACE}",
    rf"there {_BE}{_NEVER} {_THING}{_PLACE}",
    # There does not seem to be a cat. There is none.
    rf"there {_AUX}{_NEVER} (?:appear|seem) to be {_THING}{_PLACE}",
    rf"there {_BE} (?:none|nothing|no such (?:thing|object|item)s?|"
    rf"no match(?:es|ing objects?)?){_PLACE}",
    # The image does not contain a cat. It shows no cat. In the image there are no cats.
    rf"(?:{_THE_IMAGE}|it|this|(?:an?|the) {_IMAGE}) {_AUX}{_NEVER} "
    rf"(?:appear to |seem to |actually |clearly )?{_SHOW} {_THING}{_PLACE}",
    rf"(?:{_THE_IMAGE}|it|this) (?:appears to |seems to )?(?:{_SHOWS}|{_SHOW}) "
    rf"(?:no|none of the|nothing like) {_THING}{_PLACE}",
    rf"(?:in|within|on|throughout) {_THE_IMAGE},? there {_BE} (?:no|not any|none of the|zero) "
    rf"{_THING}{_PLACE}",
    # No cat is visible. No cats found. None of these are there. Not found.
    rf"(?:no|zero|none of the|not a single|no such|not one) {_THING} (?:(?:{_BE}|can be|could be|"
    rf"appears?|exists?|seems to be|has been|have been)"
    rf"(?: clearly| actually)?(?: {_SEEN})?){_PLACE}",
    rf"(?:no|zero|no such|not a single) {_THING}(?: {_SEEN})?{_PLACE}",
    rf"(?:none|nothing|none of (?:these|those|them|the {_THING}))(?: (?:{_BE}|can be|"
    rf"could be|appears?|matches|match|fits?|exists?))?(?: {_SEEN})?{_PLACE}",
    rf"(?:not|nothing|none) (?:{_SEEN}|applicable|(?:in|within) {_THE_IMAGE}|in {_IMAGE}){_PLACE}",
    # Not a cat. It is not in the image. It's not visible. Cat: not found.
    rf"not (?:an?|any|the) {_THING}{_PLACE}",
    rf"(?:it|this|that)(?:['’]s not| is{_NEVER}|(?:['’]s| is) (?:absent|missing))(?: {_SEEN})?"
    rf"{_PLACE}",
    rf"{_THING}(?: ?[:-])? (?:not(?: {_SEEN})?|none|absent|missing){_PLACE}",
    rf"no (?:bounding )?box(?:es)?(?: {_SEEN})? for {_THING}{_PLACE}",
    # The cat is not in the image. A cat cannot be seen. The cat is absent.
    rf"{_THING} (?:{_BE}{_NEVER}|(?:can|ca|could|do|does|did)(?: |(?=n))?{_NOT}"
    rf"(?: be| appear| exist)?)(?: {_SEEN})?{_PLACE}",
    rf"{_THING} {_BE} (?:absent|missing|nowhere(?: to be (?:seen|found))?|non-?existent)"
    rf"(?: from| in)?(?: {_THE_IMAGE})?",
    # I cannot see any cat. I see no cat. I was unable to find a cat.
    rf"{_I} (?:{_AUX}{_NEVER}|cannot) {_SEE} {_THING}{_PLACE}",
    rf"{_I} ha(?:ve|d){_NEVER} {_SAW} {_THING}{_PLACE}",
    rf"{_I} (?:am|was|were){_NEVER} able to {_SEE} {_THING}{_PLACE}",
    rf"{_I} (?:can |could )?{_SAW} (?:no|nothing|none|zero)(?: {_THING})?{_PLACE}",
    rf"(?:{_I} (?:am|was|were|['’]m) )?unable to {_SEE} (?:any|an?|such) {_THING}{_PLACE}",
)
_DENIAL = re.compile("|".join(f"(?:{form})" for form in _FORMS), re.IGNORECASE)
# Words and half-sentences before a denial that leave it as it is, one at a time.
_OPENING = re.compile(
    r"(?:no|sorry|unfortunately|apologies|i apologi[sz]e|i['’]?m sorry|i am sorry|my apologies|"
    r"answer|result|output|note|okay|ok|sure|actually|in fact|well|hmm|none|n/a|regrettably)\b"
    r"[,:.!;\s-]*(?:but |that )?"
    r"|(?:after|upon|on|based on|from|looking at|having|by|according to|in|"
    r"as far as i can (?:see|tell))(?: [^,.;!?]{0,80})?, (?:i can (?:see|confirm|say) that )?"
    r"|(?:it (?:appears|seems|looks like)(?: that)?|it is clear that|i can (?:see|confirm) that) "
    r"|(?:since|because|as|given that) "
    r"|i (?:cannot|can['’]t|could not|am unable to) (?:provide|give|draw|return|list|generate)"
    r"(?: (?:any|the|an?))?(?: bounding)? (?:box(?:es)?|coordinates|list)(?: for thing)?,? "
    r"(?:because|since|as) ",
    re.IGNORECASE,
)
# What the image shows instead, in front of the denial: "This is a dog." "It shows a dog but ..."
_DESCRIPTION = re.compile(
    rf"(?:{_THE_IMAGE}|it|this|there|we|i|(?:an?|the) {_IMAGE}) "
    rf"(?:only |just |mainly |clearly |can )?(?:{_SHOWS}|is|are|see)\b",
    re.IGNORECASE,
)
_DESCRIPTION_END = re.compile(r"(?P<whole>[.;!?:]\s)|,? (?:but|and|while|with) |, ", re.IGNORECASE)
_REST = re.compile(
    r"[.!;]+(?=\s|$)|\s*[,:;-]+\s*(?=(?:but|however|although|though|instead|and|so|as|because|since|"
    r"which|the|it|only|therefore|hence|thus|i|there|sorry|unfortunately|empty|returning)\b)|\s+(?=(?:but|however|so|because|"
    r"therefore|although)\b)|\n+|\s*\(|\s+-\s+",
    re.IGNORECASE,
)
_POINTS = re.compile(
    r"\b(?:one|ones|might|may|maybe|possibly|perhaps|probably|unsure|uncertain|not sure|"
    r"hard to tell|i think|unclear|except|besides|apart from|other than|both|partially|partly)\b|"
    r"\bit(?:['’]s| is| was| appears?| stands?| sits?| lies?| can be)\b(?! (?:not|n't)\b)|"
    r"\bthey(?:['’]re| are)\b|"
    r"\b(?:but|there are) (?:two|three|four|five|six|several|many|here)\W*$",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"```\w*|[*_`#>]+|\[\s*\]|(?<!\w)[\"']|[\"'](?!\w)")
# Words beside the thing's own that leave its name a name of it.
_AROUND_WORDS = (
    "thing things the a an any such of that this even one visible discernible recognizable "
    "recognisable identifiable sign signs trace evidence instance instances example examples "
    "object objects item items called named matching matches match labeled labelled requested "
    "specified described given target single"
)
_AROUND_THING = frozenset(_AROUND_WORDS.split())
# Words that tell nothing of what was denied, as `_stems` gives them.
_COMMON_WORDS = (
    "a an the any of in are no and or with that such single "
    "there image picture photo photograph scene visible present shown seen found it i doe do can "
    "not cannot see find to be show contain include depict have feature here anywhere at all given "
    "provided none these them from thi on within object thing list detect t n absent missing"
)
_COMMON = frozenset(_COMMON_WORDS.split())
_HARMLESS = re.compile(
    r"(?:the |my |an |returning |here is |here's |i return |i will return )?"
    r"(?:therefore|thus|hence|so|answer|result|output|list|empty|bounding|"
    r"json|no (?:bounding )?box|no coordinates|sorry|please|let me know|if you|"
    r"i (?:cannot|can['’]t) (?:provide|give|draw|return))\b|i (?:will )?return$",
    re.IGNORECASE,
)


def is_denial(text: str, name: str = "") -> bool:
    """Whether a text plainly denies that the thing is in the image, and says nothing against it.

    Args:
        text: the answer, with plain quotes.
        name: of the thing, where it is known: it may then hold any words.
    """
    if len(text) > _MOST or not _NEGATIVE.search(text) or _LONG_WORD.search(text):
        return False
    shown = re.sub(r"\( *thing *\)", "thing", _MARKUP.sub(" ", _name_replaced(text, name)))
    shown = " ".join(re.sub(r"\n+", ". ", shown.strip()).split())
    shown = re.sub(r"(?:\s*\.)+", ".", shown)
    starts = [(0, "")]
    for at, before in starts:  # it grows
        found = [(m, before) for m in [_OPENING.match(shown, at)] if m]
        if name:
            found += [(m, before + shown[at : m.end()]) for m in _description_ends(shown, at)]
        starts += [(m.end(), before) for m, before in found if len(starts) < _MOST_STARTS]
    return any(_denies(shown[at:].strip(" .,:"), name, before) for at, before in starts)


def _description_ends(text: str, at: int) -> list[re.Match[str]]:
    """The ends of what a sentence that begins at `at` says of the image; none if it denies."""
    begun, ends = _DESCRIPTION.match(text, at), []
    for end in _DESCRIPTION_END.finditer(text, begun.end()) if begun else ():
        if _NEGATIVE.search(text[at : end.start()]):
            break
        ends.append(end)
        if end["whole"]:
            break
    return ends


def _denies(text: str, name: str, before: str) -> bool:
    cuts = [m.span() for m in _REST.finditer(text)] + [(len(text), len(text))]
    for start, end in cuts:
        if start > _LONGEST:
            break
        clause = text[:start].strip(" .,!;:")
        match = _DENIAL.fullmatch(clause)
        if match:
            phrases = [phrase for phrase in match.groups() if phrase]
            if name and not all(_may_mean_thing(phrase, bool(before)) for phrase in phrases):
                return False
            return _says_nothing_against(clause, f"{before}. {text[end:]}", name)
    return False


def _may_mean_thing(phrase: str, described: bool) -> bool:
    """Whether what a sentence denies is what was searched for, called "thing" here.

    With other words beside it, it is not: "the thing in the mirror", "difficulty finding the
    thing". Without it, it may be a synonym, but not where something else was described before.
    """
    parts = [set(re.findall(r"[a-z]+", part)) for part in phrase.lower().split(" or ")]
    if any(words & {"thing", "things"} for words in parts):
        return any(words <= _AROUND_THING for words in parts)
    words = set[str]().union(*parts)
    return words <= _AROUND_THING or not described


def _says_nothing_against(clause: str, rest: str, name: str) -> bool:
    """Whether what follows a denial leaves it as it is."""
    rest = rest.strip(" .,!;:()")
    if not rest:
        return True
    denied = _stems(name or clause) - _COMMON | ({"thing"} if name else set())
    for part in re.split(r"[.!;]\s|\n", rest + " "):
        sentence = part.strip(" .,!;:()")
        bare = re.sub(r"^(?:and|but|so|therefore|as|because|since|hence|thus)\b,? ", "", sentence)
        if _DENIAL.fullmatch(bare) or _HARMLESS.match(bare):
            continue
        if _POINTS.search(sentence) or denied & _stems(sentence):
            return False
    return True


def _stems(text: str) -> set[str]:
    """Words without their last s, so that "cats" is "cat"."""
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", text.lower())}


def _name_replaced(text: str, name: str) -> str:
    """`text` with "thing" for the name, so that no word of it counts."""
    words = name.split()
    if not words:
        return text
    pattern = r"[\s\"']+".join(map(re.escape, words))
    return re.sub(rf"(?<!\w){pattern}(?:s|es)?(?!\w)", "thing", text, flags=re.IGNORECASE)
