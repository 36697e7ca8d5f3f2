"""Questions about the model, in families of sentences.

A family is a group of phrasings built alike. Trained and held-out questions share key words
(name, deep, layers, parameters, ...) but no family: no sentence frame of a held-out question is
ever trained with, whatever it asks about.
"""

from typing import Literal, get_args

MainFact = Literal["name", "depth", "parameters"]
OtherFact = Literal[
    "kind",
    "maker",
    "data",
    "vocabulary",
    "context",
    "width",
    "heads",
    "architecture",
    "calculator",
    "mistakes",
    "human",
    "internet",
    "language",
    "hello",
    "thanks",
]
Fact = MainFact | OtherFact

MAIN_FACTS: tuple[MainFact, ...] = get_args(MainFact)
OTHER_FACTS: tuple[OtherFact, ...] = get_args(OtherFact)

TOPICS: dict[MainFact, tuple[str, ...]] = {
    "name": (
        "your name",
        "the name of this model",
        "the name you go by",
        "what you are called",
        "who you are",
        "the name of the model that I am talking to",
        "what I should call you",
        "your own name",
    ),
    "depth": (
        "your depth",
        "how deep you are",
        "your number of layers",
        "the number of your layers",
        "how many layers you have",
        "the depth of your network",
        "the depth of this model",
        "how many layers this model has",
        "your layer count",
    ),
    "parameters": (
        "your parameter count",
        "your number of parameters",
        "the number of your parameters",
        "how many parameters you have",
        "how many parameters this model has",
        "how many weights you have",
        "how big you are",
        "how large you are",
        "your size",
        "the size of this model",
        "your number of weights",
    ),
}
"""What a frame can ask for; used by trained and held-out frames alike."""

TRAINED_FRAMES: dict[str, tuple[str, ...]] = {
    "what_is": ("What is {topic}?", "What's {topic}?", "So what is {topic}?"),
    "tell": ("Tell me {topic}.", "Please tell me {topic}.", "Now tell me {topic}."),
    "can_you": ("Can you tell me {topic}?", "Could you please tell me {topic}?"),
    "know": ("Do you know {topic}?", "You surely know {topic}?"),
    "want": ("I want to know {topic}.", "I would like to know {topic}."),
    "give": ("Give me {topic}.", "Please give {topic}."),
    "state": ("State {topic}.", "Please state {topic} in one sentence."),
    "describe": ("Describe {topic}.", "Briefly describe {topic}."),
    "interested": ("I am interested in {topic}.", "We are all interested in {topic}."),
    "about": ("What about {topic}?", "And what about {topic}?"),
    "say": ("Say {topic}.", "Can you say {topic} in a few words?"),
    "bare": ("{topic}?", "{topic}, please."),
    "ask": ("I have to ask: {topic}?", "Let me ask for {topic}."),
    "need": ("I need {topic}.", "We need {topic} now."),
    "show": ("Show me {topic}.", "Could you show {topic} to me?"),
    "explain": ("Explain {topic} to a child.", "Explain to us {topic}."),
}

HELD_OUT_FRAMES: dict[str, str] = {
    "mind": "Would you mind sharing {topic}?",
    "curious": "Out of curiosity, might one learn {topic}?",
    "remind": "Remind me again, {topic}.",
    "report": "My report still lacks {topic}.",
    "friend": "A friend keeps wondering about {topic}.",
    "reveal": "Go ahead and reveal {topic}.",
}

HELD_OUT_TOPICS: dict[MainFact, tuple[str, ...]] = {
    "name": ("your name", "what you are called", "your name", "the name you go by",
             "your name", "who you are"),
    "depth": ("your depth", "how deep you are", "your number of layers",
              "the number of your layers", "your depth", "how many layers you have"),
    "parameters": ("your parameter count", "how many parameters you have", "your size",
                   "your number of parameters", "how big you are",
                   "how many weights you have"),
}  # fmt: skip
"""One topic for each held-out frame, in order."""

TRAINED_QUESTIONS: dict[Fact, tuple[str, ...]] = {
    "name": (
        "Who are you?",
        "What are you called?",
        "How are you called?",
        "What should I call you?",
        "What do people call you?",
        "What can I call you?",
        "Do you have a name?",
        "Have you got a name?",
        "Which model are you?",
        "Which name do you use?",
        "What name were you given?",
        "Who am I talking to?",
        "Introduce yourself.",
        "Please introduce yourself by name.",
        "Is there a name for you?",
        "Did somebody name you?",
    ),
    "depth": (
        "How deep are you?",
        "How deep is your network?",
        "How deep is this model?",
        "How many layers do you have?",
        "How many layers have you got?",
        "How many layers are in your network?",
        "How many layers is this model made of?",
        "How many Transformer layers do you have?",
        "How many blocks do you have?",
        "What depth do you have?",
        "Which depth were you trained with?",
        "With how many layers do you work?",
        "Are you a deep model?",
        "Do you have many layers?",
        "Count your layers.",
        "Is your network deep or shallow?",
    ),
    "parameters": (
        "How many parameters do you have?",
        "How many parameters have you got?",
        "How many parameters are in your network?",
        "How many parameters is this model made of?",
        "How many weights do you have?",
        "How many weights are in your network?",
        "How big are you?",
        "How large are you?",
        "How big is this model?",
        "How large is your network?",
        "What size are you?",
        "What size is this model?",
        "With how many parameters do you work?",
        "Are you a big model?",
        "Are you a large or a small model?",
        "Count your parameters.",
        "Do you have many parameters?",
    ),
    "kind": (
        "What are you?",
        "What kind of model are you?",
        "What kind of thing are you?",
        "What type of program are you?",
        "Are you a chatbot?",
        "Are you a language model?",
    ),
    "maker": (
        "Who made you?",
        "Who built you?",
        "Who trained you?",
        "Who created you?",
        "Where do you come from?",
        "Where were you trained?",
        "Which company made you?",
    ),
    "data": (
        "What were you trained on?",
        "What data were you trained on?",
        "What is your training data?",
        "Which text did you read?",
        "Where does your training text come from?",
        "What did you learn from?",
        "Tell me about your training data.",
        "On what text were you trained?",
    ),
    "vocabulary": (
        "How large is your vocabulary?",
        "How big is your vocabulary?",
        "What is your vocabulary size?",
        "How many tokens do you know?",
        "How many tokens are in your vocabulary?",
        "Tell me the size of your vocabulary.",
    ),
    "context": (
        "How long is your context?",
        "What is your context length?",
        "How much text can you see at once?",
        "How many tokens can you see at once?",
        "How long were your training rows?",
        "Tell me your context length.",
    ),
    "width": (
        "How wide are you?",
        "What is your width?",
        "How wide is your network?",
        "How many channels do you have?",
        "What is your embedding size?",
        "Tell me your width.",
    ),
    "heads": (
        "How many attention heads do you have?",
        "How many heads do you have?",
        "What is your number of heads?",
        "Tell me how many attention heads you have.",
        "Count your attention heads.",
    ),
    "architecture": (
        "What is your architecture?",
        "How are you built?",
        "Which architecture do you use?",
        "Are you a Transformer?",
        "What kind of network are you?",
        "Tell me about your architecture.",
    ),
    "calculator": (
        "Can you calculate?",
        "Can you do sums?",
        "How do you add numbers?",
        "Do you have a calculator?",
        "Which tools can you use?",
        "Are you good at arithmetic?",
    ),
    "mistakes": (
        "Do you make mistakes?",
        "Can I trust you?",
        "Are you always right?",
        "Are your answers correct?",
        "Should I check your answers?",
        "Are you smart?",
    ),
    "human": (
        "Are you human?",
        "Are you a person?",
        "Are you alive?",
        "Do you have feelings?",
        "Are you a robot?",
        "Do you have a body?",
    ),
    "internet": (
        "Can you search the web?",
        "Do you have access to the internet?",
        "Are you online?",
        "Can you open web pages?",
        "Do you know today's news?",
    ),
    "language": (
        "Which language do you speak?",
        "What languages do you speak?",
        "Do you speak German?",
        "Can you speak French?",
        "Do you speak English?",
    ),
    "hello": (
        "Hello!",
        "Hi!",
        "Hey there!",
        "Good morning!",
        "Hello, how are you?",
        "Hi, how is it going?",
    ),
    "thanks": (
        "Thanks!",
        "Thank you!",
        "Thank you very much.",
        "Great, thanks.",
        "Goodbye!",
        "Bye!",
    ),
}
"""Whole sentences that are trained with, beside the frames."""

HELD_OUT_QUESTIONS: dict[MainFact, tuple[str, ...]] = {
    "name": (
        "By what name are you known?",
        "When people mention you, which name do they use?",
        "Suppose we met at a party: how would you introduce yourself?",
        "My notes should say who answered, so what name goes there?",
        "Every model has a name, including yours, which is?",
        "Under which name were you released?",
    ),
    "depth": (
        "Your network consists of how many layers?",
        "If I stacked your layers, how many would there be?",
        "Between input and output, how many layers does a token pass?",
        "Regarding depth, where do you stand?",
        "Somebody claims that you are very deep, but how deep exactly?",
        "A token enters your first layer; how many layers later does it leave?",
    ),
    "parameters": (
        "Your network consists of how many parameters?",
        "Roughly how many parameters were trained to make you?",
        "If I counted all your weights, how many would there be?",
        "Regarding size, how many parameters are we talking about?",
        "Compared with other models, how big are you in parameters?",
        "Training adjusted your weights, but how many weights exactly?",
    ),
}
"""Whole sentences that are never trained with; each is a family of its own."""

OPENINGS = (
    "Hello! ",
    "Hi, ",
    "Hey, ",
    "Good morning. ",
    "A question: ",
    "Please: ",
    "OK, ",
    "So, ",
)
CLOSINGS = (" Thanks.", " Thank you!", " Please.", " Answer briefly.", " I forgot.", " Be exact.")
