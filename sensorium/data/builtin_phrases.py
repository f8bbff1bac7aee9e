"""How questions about the built-in set are asked: several phrasings per family, for emoji in ten languages."""

from __future__ import annotations

CAPTION: dict[str, tuple[str, ...]] = {
    "en": ("What is this?", "What does the picture show?", "Name what you see.", "What is in the image?"),
    "zh": ("这是什么？", "图中是什么？", "请说出图中的事物。"),
    "fr": ("Qu'est-ce que c'est ?", "Que montre l'image ?", "Que voit-on sur l'image ?"),
    "de": ("Was ist das?", "Was zeigt das Bild?", "Was ist auf dem Bild zu sehen?"),
    "es": ("¿Qué es esto?", "¿Qué muestra la imagen?", "¿Qué se ve en la imagen?"),
    "ja": ("これは何ですか？", "画像には何がありますか？", "この絵は何を表していますか？"),
    "ko": ("이것은 무엇인가요?", "그림에 무엇이 있나요?", "이 그림은 무엇을 나타내나요?"),
    "ru": ("Что это?", "Что изображено на картинке?", "Назовите то, что вы видите."),
    "ar": ("ما هذا؟", "ماذا تُظهر الصورة؟", "ماذا ترى في الصورة؟"),
    "hi": ("यह क्या है?", "चित्र में क्या है?", "आपको तस्वीर में क्या दिख रहा है?"),
}

KEYWORDS: dict[str, tuple[str, ...]] = {
    "en": ("Give three keywords for this picture.", "Which three words go with this picture?"),
    "zh": ("请给出这张图的三个关键词。", "哪三个词与这张图有关？"),
    "fr": ("Donne trois mots-clés pour cette image.", "Quels sont trois mots liés à cette image ?"),
    "de": ("Nenne drei Stichwörter zu diesem Bild.", "Welche drei Wörter passen zu diesem Bild?"),
    "es": ("Da tres palabras clave de esta imagen.", "¿Qué tres palabras van con esta imagen?"),
    "ja": ("この画像のキーワードを三つ挙げてください。", "この画像に関係のある言葉を三つ教えてください。"),
    "ko": ("이 그림의 핵심어 세 개를 말해 주세요.", "이 그림과 관련된 낱말 세 개는 무엇인가요?"),
    "ru": ("Назовите три ключевых слова к этой картинке.", "Какие три слова связаны с этой картинкой?"),
    "ar": ("اذكر ثلاث كلمات مفتاحية لهذه الصورة.", "ما الكلمات الثلاث المرتبطة بهذه الصورة؟"),
    "hi": ("इस चित्र के लिए तीन मुख्य शब्द बताइए।", "इस चित्र से जुड़े तीन शब्द कौन से हैं?"),
}

DRAW = ("Draw {name}.", "Make a picture of {name}.", "Show me {name}.")
"""What is asked of a model that draws."""

CATEGORY = ("Which category does this belong to?", "What kind of thing is this: which category?")

CHOICE_NAME: dict[str, tuple[str, ...]] = {
    "en": ("Which of these is it: {options}?", "What does the picture show: {options}?"),
    "zh": ("这是以下哪一个：{options}？", "图中是哪一个：{options}？"),
    "fr": ("Lequel est-ce : {options} ?", "Que montre l'image : {options} ?"),
    "de": ("Was davon ist es: {options}?", "Was zeigt das Bild: {options}?"),
    "es": ("¿Cuál de estos es: {options}?", "¿Qué muestra la imagen: {options}?"),
    "ja": ("次のうちどれですか：{options}？", "画像にあるのはどれですか：{options}？"),
    "ko": ("다음 중 어느 것인가요: {options}?", "그림은 무엇을 나타내나요: {options}?"),
    "ru": ("Что из этого: {options}?", "Что изображено: {options}?"),
    "ar": ("أي من هذه: {options}؟", "ماذا تُظهر الصورة: {options}؟"),
    "hi": ("यह इनमें से कौन सा है: {options}?", "चित्र में क्या है: {options}?"),
}

CHOICE_LETTER: dict[str, tuple[str, ...]] = {
    "en": ("What is this?\n{options}\nAnswer with the letter.", "Pick the letter of what you see.\n{options}"),
    "zh": ("这是什么？\n{options}\n请回答字母。", "请选出图中事物的字母。\n{options}"),
    "fr": ("Qu'est-ce que c'est ?\n{options}\nRéponds par la lettre.", "Choisis la bonne lettre.\n{options}"),
    "de": ("Was ist das?\n{options}\nAntworte mit dem Buchstaben.", "Wähle den richtigen Buchstaben.\n{options}"),
    "es": ("¿Qué es esto?\n{options}\nResponde con la letra.", "Elige la letra correcta.\n{options}"),
    "ja": ("これは何ですか？\n{options}\n記号で答えてください。", "正しい記号を選んでください。\n{options}"),
    "ko": ("이것은 무엇인가요?\n{options}\n글자로 답하세요.", "맞는 글자를 고르세요.\n{options}"),
    "ru": ("Что это?\n{options}\nОтветьте буквой.", "Выберите верную букву.\n{options}"),
    "ar": ("ما هذا؟\n{options}\nأجب بالحرف.", "اختر الحرف الصحيح.\n{options}"),
    "hi": ("यह क्या है?\n{options}\nअक्षर में उत्तर दें।", "सही अक्षर चुनिए।\n{options}"),
}

YES_NO: dict[str, tuple[str, ...]] = {
    "en": ("Is this “{name}”?", "Does the picture show “{name}”?"),
    "zh": ("这是“{name}”吗？", "图中是“{name}”吗？"),
    "fr": ("Est-ce « {name} » ?", "L'image montre-t-elle « {name} » ?"),
    "de": ("Ist das „{name}“?", "Zeigt das Bild „{name}“?"),
    "es": ("¿Es esto «{name}»?", "¿Muestra la imagen «{name}»?"),
    "ja": ("これは「{name}」ですか？", "画像にあるのは「{name}」ですか？"),
    "ko": ("이것은 ‘{name}’인가요?", "그림은 ‘{name}’을(를) 나타내나요?"),
    "ru": ("Это «{name}»?", "На картинке «{name}»?"),
    "ar": ("هل هذا «{name}»؟", "هل تُظهر الصورة «{name}»؟"),
    "hi": ("क्या यह “{name}” है?", "क्या चित्र में “{name}” है?"),
}

YES_AND_NO: dict[str, tuple[str, str]] = {
    "en": ("yes", "no"),
    "zh": ("是", "不是"),
    "fr": ("oui", "non"),
    "de": ("ja", "nein"),
    "es": ("sí", "no"),
    "ja": ("はい", "いいえ"),
    "ko": ("네", "아니요"),
    "ru": ("да", "нет"),
    "ar": ("نعم", "لا"),
    "hi": ("हाँ", "नहीं"),
}

SCENE: dict[str, tuple[str, ...]] = {
    "what": ("What is at the {place}?", "Which thing is at the {place}?", "What can be seen at the {place}?"),
    "count": (
        "How many times does “{name}” appear?",
        "Count “{name}”: how many are in the picture?",
        "How many “{name}” are there?",
    ),
    "where": ("Where is the {name}?", "In which part of the picture is “{name}”?", "Where is “{name}”?"),
    "relation": (
        "Which is further {side}, “{first}” or “{second}”?",
        "Which is further {side}: the {first} or the {second}?",
    ),
    "yes_no": ("Is “{name}” in the picture?", "Does the picture show the {name}?", "Can you see “{name}”?"),
    "bigger": ("Which is {degree}, “{first}” or “{second}”?", "Which is {degree}: the {first} or the {second}?"),
    "box": ("Where is the box of “{name}”?", "Give the bounding box of the {name}."),
    "refer": ("What is in the box {box}?", "Name the object at {box}."),
    "text": ("What is written in the picture?", "Which word can you read?", "Read the text."),
    "describe": ("Say what is where.", "Describe the picture."),
}

COUNTS = ("one", "two", "three", "four", "five")

_WORDS = """
about above again almost along always among answer around before begin below better between both bring build
carry change choose clear close common corner county decide deep early east edge enough every exact fact fair
family fast favour few final finish first follow found four free front full future gather gentle give good great
group grow half happen hard hello help high hope hour hundred idea inside join just keep kind large last late
laugh lead learn leave less level light list little local long lose loud lower main make many matter maybe mean
measure method middle might minute moment month more morning most move much must near never next nice night noise
north often only open order other outside over page part past path pause people perhaps place plain plan point
power press price proud public pull push quick quiet quite rather reach ready real reason rest right round rule
safe same save second sense seven several shape share short show side simple since single slow small smooth soft
some soon sound south space speak spell stand start state stay still story strange street strong such sure table
take talk team thank thick think third those though today touch toward travel true turn under until upper usual
value very visit voice wait walk warm watch weak week welcome west wide winter without wonder word world write
wrong year yellow young zero
"""
WORDS = tuple(_WORDS.split())
"""Words that text scenes show."""


def category_name(category: str) -> str:
    """A category of emoji as an answer says it: "food and drink"."""
    return category.replace("&", "and").lower()
