"""The 80 objects of COCO, each with words that captions have for it (singular)."""

from __future__ import annotations

_TABLE = """
person: man, woman, child, boy, girl, baby, kid, lady, guy, adult, toddler, infant, teenager, people, player, surfer,
    skier, snowboarder, skateboarder, skater, rider, biker, cyclist, batter, pitcher, catcher, umpire, swimmer, worker,
    officer, policeman, police officer, fireman, firefighter, chef, waiter, waitress, passenger, pedestrian, driver,
    tourist, spectator, student, teacher, soldier, farmer, groom, bride, crowd, couple, gentleman, human, male, female,
    husband, wife, mother, father, mom, dad, son, daughter, brother, sister, friend, family, customer, commuter
bicycle: bike, cycle, tricycle, mountain bike
car: automobile, sedan, suv, jeep, taxi, cab, hatchback, minivan, convertible, police car, sports car, van
motorcycle: motorbike, motor bike, motor cycle, scooter, moped, dirt bike
airplane: plane, air plane, aircraft, jet, airliner, jetliner, biplane, aeroplane, passenger jet, seaplane, fighter jet
bus: minibus, tour bus, school bus, double decker, trolleybus
train: locomotive, subway train, steam engine, passenger train, tram, freight train, streetcar
truck: pickup, pickup truck, lorry, fire truck, firetruck, semi truck, dump truck, tow truck, hauler, fire engine
boat: ship, sailboat, canoe, kayak, ferry, yacht, rowboat, speedboat, gondola, raft, vessel, barge, motorboat, tugboat
traffic light: stoplight, stop light, traffic signal, street light, signal light
fire hydrant: hydrant
stop sign:
parking meter: meter
bench: park bench, pew
bird: pigeon, seagull, gull, duck, goose, owl, parrot, eagle, hawk, swan, ostrich, peacock, sparrow, pelican, crow,
    hen, rooster, chicken, robin, flamingo, penguin, turkey, finch, heron, stork, woodpecker, hummingbird, parakeet
cat: kitten, kitty, feline, tabby
dog: puppy, pup, canine, hound, poodle, terrier, bulldog, retriever, labrador, dachshund, chihuahua, husky, beagle, pug
horse: pony, foal, colt, mare, stallion
sheep: lamb, ewe, ram
cow: cattle, bull, calf, ox, steer, heifer
elephant: baby elephant
bear: grizzly, polar bear, grizzly bear, panda, bear cub
zebra:
giraffe: baby giraffe
backpack: back pack, knapsack, rucksack
umbrella: parasol
handbag: purse, hand bag, wallet, tote
tie: necktie, bow tie, neck tie, bowtie
suitcase: suit case, luggage, briefcase, brief case
frisbee: flying disc, flying disk
skis: ski
snowboard: snow board
sports ball: ball, baseball, tennis ball, soccer ball, football, basketball, volleyball, beach ball
kite:
baseball bat:
baseball glove: mitt, baseball mitt, catcher's mitt
skateboard: skate board
surfboard: surf board, longboard, wakeboard
tennis racket: racket, racquet, tennis racquet
bottle: water bottle, wine bottle, beer bottle
wine glass: goblet, wineglass
cup: mug, coffee cup, coffee mug, teacup
fork: pitchfork
knife: pocketknife, butter knife
spoon: teaspoon, ladle
bowl: bowl
banana: plantain
apple:
sandwich: burger, hamburger, cheeseburger, sub, panini
orange: tangerine, mandarin, clementine
broccoli:
carrot:
hot dog: hotdog, hot dog bun
pizza: pizza pie, pizza slice
donut: doughnut, bagel
cake: cupcake, cheesecake, birthday cake, wedding cake
chair: armchair, arm chair, stool, recliner, rocking chair, seat, high chair
couch: sofa, loveseat, futon, settee
potted plant: houseplant, house plant, plant, bonsai
bed: bunk bed, crib, cot, mattress
dining table: table, kitchen table, coffee table, desk
toilet: commode, urinal
tv: television, tv set, television set, flat screen, flatscreen, monitor
laptop: laptop computer, notebook computer, macbook, computer
mouse: computer mouse
remote: remote control, wii remote, wii controller, game controller
keyboard: computer keyboard
cell phone: cellphone, mobile phone, smartphone, smart phone, phone, iphone, telephone
microwave: microwave oven
oven: stove, stove top, stovetop, range oven, stove top oven
toaster: toaster oven
sink: basin, washbasin
refrigerator: fridge, freezer
book: novel, textbook, notebook
clock: alarm clock, wall clock, clock tower
vase: flower vase
scissors: scissor, pair of scissors, shears
teddy bear: teddy, stuffed bear, stuffed animal
hair drier: hair dryer, hairdryer, blow dryer
toothbrush: tooth brush, electric toothbrush
"""


def _read(table: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in table.strip().splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
            found[name] = ()
        found[name] += tuple(word for part in line.split(",") if (word := part.strip()) and word != name)
    return found


COCO_WORDS = _read(_TABLE)
"""object -> its other names."""

NO_OBJECTS = ("home plate", "train track", "train station", "bus stop", "bus station", "toilet paper", "hot tub",
              "paper plate", "bear claw", "bed room", "book shelf", "car seat", "dining room", "phone booth",
              "table tennis", "bath tub", "horse shoe")  # fmt: skip
"""What has the name of an object in it and is none."""
