"""Word lists of the caption parser and of the concept pool.

Captions use a small part of English: noun phrases, prepositions, -ing verbs, few tenses. The lists give what the
lemma tables can't: which reading of an ambiguous word captions mean, and which nouns name no visible thing.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.replace("\n", " ").split(",") if part.strip())


def _by_first(text: str) -> dict[str, frozenset[str]]:
    """Read "dining: room table; living: room": a word, and those that may follow it."""
    return {first: _words(rest) for first, rest in (entry.strip().split(":") for entry in text.split(";"))}


# ---------------------------------------------------------------- closed classes

DETERMINERS = _words("a an the this these those every each no any some all both either neither such what whatever")
SINGULAR_DETERMINERS = _words("a an one this each every another either neither")
POSSESSIVES = _words("his its their our my your whose her")
PRONOUNS = _words(
    "he she it they we i you him them us me who whom which itself himself herself themselves myself yourself "
    "ourselves oneself something anything nothing everything someone anyone everyone somebody anybody everybody "
    "nobody none others ones hers theirs mine yours ours whoever"
)
NUMBERS = _words(
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million"
)
ADPOSITIONS = _words(
    "of in on at with by for from into onto under over through across along behind beside besides between among "
    "amongst above below beneath underneath atop against around near towards toward past during without within upon "
    "off up down out outside inside after before about via per beyond throughout amid amidst alongside except "
    "despite until since opposite aboard like than as unto"
)
COORDINATORS = _words("and or but nor & plus")
SUBORDINATORS = _words("while because if when where whether although though unless how why whereas")
BE_FORMS = _words("is are was were be been being am 're 'm ’re isn aren wasn get gets got getting")
HAVE_FORMS = _words("has have had having 've ’ve")
MODALS = _words("can could will would shall should may might must does do did don doesn didn ca wo 'll ’ll cannot")
ADVERBS = _words(
    "together not n't n’t also just only there here away apart nearby then now still yet again always never often "
    "sometimes soon later already back-to-back side-by-side upside-down forward backward backwards forwards upwards "
    "downwards sideways indoors outdoors downhill uphill overhead ahead somewhere anywhere everywhere else instead "
    "even ever perhaps maybe however aside upstairs downstairs ashore abroad underwater mid-air midair horseback "
    "barefoot shirtless airborne"
)

# Adverbs that come before an adjective inside a noun phrase ("a very old dog"); the ones above never do.
DEGREE_ADVERBS = _words("very too so really quite rather almost nearly somewhat more most less extra pretty")

# Determiner before a noun ("some dogs"), pronoun elsewhere ("some of them").
QUANTIFIERS = _words("several many few much more most other another all both some each any one enough half less fewer")
# Words that ambiguous_words.py has a rule for.
AMBIGUOUS = _words(
    "that this these those to her next close back front top left right inside outside light dark 's can well like as "
    "past opposite getting"
)

# ---------------------------------------------------------------- readings

COLORS = _words(
    "red green blue yellow white black brown orange purple pink grey gray beige tan gold silver golden maroon teal "
    "turquoise navy cream crimson violet lavender magenta cyan khaki burgundy ivory"
)
# The colours above that are things where they are a noun with words of its own ("a peeled orange", "ice cream").
COLOR_THINGS = _words("orange cream lavender violet")

# Adjectives in captions, whatever else the tables list.
ADJECTIVES = _words(
    "open closed empty dry wet clean clear dirty busy smart single narrow shallow steep fancy bare antique married "
    "french low high long short tall wide deep flat plain round quiet calm smooth rough cool warm cold hot dark "
    "bright full half double triple fake dead alive wild lush heavy thick thin fresh free rich poor young old new "
    "modern small large big huge giant little tiny mini nice pretty beautiful cute good great best better bad own "
    "same different similar various multiple numerous several many few other male female adult elderly asian "
    "american african indian chinese japanese european british english german italian spanish mexican russian "
    "korean arabic northern southern public private personal commercial professional military electric electronic "
    "mobile solid liquid metallic formal casual blonde blond brunette simple oval circular rectangular square "
    "triangular native local national royal medical official classic vintage retro rustic ancient historic abstract "
    "urban rural residential industrial tropical aerial individual funny happy sad angry sweet bitter sour live "
    "lone alone slow fast quick hard soft loose tight sharp blunt light loaded stuffed potted assorted lit unlit "
    "brick-red true real remote fat slim lean overweight pregnant ready late early main major minor upper lower "
    "middle-aged close open-air portable ornate parallel perpendicular diagonal vertical horizontal sleek "
    "narrow-gauge mature junior senior homeless naked nude topless stainless colored coloured crowded neat tidy "
    "messy worn torn frozen broken striped plaid checkered floral spotted freestanding matching corrugated "
    "decorative ornamental wooden woolen cloudy sunny rainy windy snowy foggy stone-faced mixed bald stray purebred "
    "elegant gorgeous lovely handsome attractive delicious yummy tasty healthy first second third fourth fifth last "
    "next straight far left-hand right-hand total average entire whole certain special extra"
)

# The adjectives above that are things too ("two adults").
ADJECTIVE_NOUNS = _words(
    "male female adult individual public professional liquid solid blonde blond brunette asian american african "
    "indian chinese japanese european british english german italian spanish mexican russian korean native local "
    "square oval official antique classic second first third mini double triple mobile junior senior light stray"
)

# Never nouns in captions, whatever the tables list ("a go", "a say").
VERBS_ONLY = _words(
    "see sees go goes take takes let lets lie lies lay lays hang hangs be do does get gets have make makes eat eats "
    "put puts give gives sit sits say says keep keeps come comes tell tells know think thinks try tries carry "
    "carries wear wears hold holds wait waits grow become becomes bring brings stays rises strewn lit seem seems"
)

# Adjectives although they end in -ly.
LY_ADJECTIVES = _words("elderly friendly lovely curly hilly ugly silly lonely lively early daily only costly")
# Verbs whose past form is the same.
UNCHANGED_PASTS = _words("set cut hit put let shut spread split shed bet cast hurt quit read cost")

# Nouns in captions, whatever else the tables list; before another noun they make a compound.
NOUNS = _words(
    "sign field cross jet bread blanket motor uniform base case net chain bottom center wheel signal bush iron bat "
    "pet bay string rose mat size plane dress mouth top side rail stone concrete metal plastic cardboard glass "
    "steel paper leather wood brick marble granite ceramic cotton cloth velvet silk denim wicker bamboo rubber "
    "cement gravel animal chicken umbrella terminal pedestrian railroad crowd tower baby people person man woman "
    "child kid saw ground shot spoke dove felt lay bear duck can ball bus train car tennis sport sports baseball "
    "soccer water wine beer coffee tea milk juice snow ice grass dirt sand mud lamp bed bench bike boat kite ship "
    "truck van taxi cab skateboard surfboard snowboard ski skate board wave sky sun moon star cloud rain wind fire "
    "smoke hill mountain park garden yard camp utility street road path track trail court room kitchen bathroom "
    "bedroom house home barn church school store shop market restaurant hotel office airport station bridge fence "
    "wall gate door window floor roof ceiling dog cat horse cow sheep goat pig bird elephant giraffe zebra monkey "
    "lion tiger fish shark whale turtle frog table chair couch sofa desk shelf cabinet drawer counter sink stove "
    "oven toaster microwave refrigerator fridge plate bowl cup mug fork knife spoon bottle jar pot pan tray basket "
    "box bag bucket sack suitcase luggage purse wallet pizza sandwich cake pie cookie donut doughnut bun burger "
    "salad soup pasta rice meat cheese egg apple banana grape lemon lime pear peach cherry berry melon carrot "
    "broccoli tomato potato onion pepper corn shirt pants shorts jacket coat hat cap helmet glove shoe boot sock "
    "tie scarf belt suit vest sweater skirt jersey wetsuit goggles glasses sunglasses mask hair head face eye nose "
    "ear neck arm hand finger leg foot tail wing horn tusk trunk beak paw phone laptop computer keyboard mouse "
    "screen monitor television tv camera radio remote speaker clock watch mirror towel soap toothbrush toilet tub "
    "bathtub shower faucet curtain rug carpet pillow sheet quilt mattress candle vase flower plant tree leaf branch "
    "log stick rock racket racquet frisbee goal player rider skier surfer skateboarder snowboarder batter pitcher "
    "catcher umpire officer police girl boy lady guy family team couple class crew band bride groom parent mother "
    "father sister brother friend military ramp pole post meter hydrant cone light traffic tire engine wagon cart "
    "trailer tractor tank cage tent flag banner poster painting picture photo photograph image view book magazine "
    "newspaper letter pen pencil scissors ribbon doll toy teddy balloon statue sculpture fountain pond lake river "
    "ocean sea beach shore coast dock pier harbor lighthouse island desert forest woods jungle meadow pasture farm "
    "stable zoo circus nut crack cub calf kitten puppy lamb colt foal flock herd frosting icing fan vent pipe hose "
    "wire cable cord rope ladder tool hammer drill lock key coin ring necklace bracelet earring button zipper "
    "pocket bow arrow gun sword attic avocado bass birch bronze caramel cardinal cathedral cereal champion charcoal "
    "chestnut coral crescent day documentary eagle fleet fossil game ginger greenhouse honey husky jade master mint "
    "mosaic olive orchid peanut pedal pendant piano piggy pop port prize punk quartz rental roast ruby rum rust "
    "salmon salt satellite scale scrub shed staple stereo stock straw stretch sunrise sunset surface tabby tart "
    "ticket token trim union vanilla volunteer waste weather world"
)

# Nouns although they end in -ing ("a painting"); the second set only where nothing follows that they could act on.
ING_NOUNS = _words(
    "building painting ceiling railing clothing wedding evening morning string ring king wing swing thing spring "
    "icing frosting topping stuffing awning siding flooring molding plumbing pudding earring lettering stocking "
    "sibling duckling lighting wiring bedding scaffolding sling bling fencing netting matting padding signage "
    "offspring lightning upholstery packaging tiling shelving herring dumpling nothing something everything "
    "anything seating housing piping paneling"
)
MAYBE_ING_NOUNS = _words("drawing crossing writing setting opening parking serving covering filling dressing")
# Gerunds that make a compound with these nouns, in either number: "dining table", "cutting boards".
GERUND_HEADS = _by_first(
    "dining: room table area hall car chair set establishment space; living: room area space quarters; parking: lot "
    "meter garage space spot area structure sign ticket deck ramp place zone attendant; cutting: board table mat; "
    "frying: pan; baking: sheet pan dish tray soda powder; cooking: pot pan oil utensil range area stove class show "
    "ware; swimming: pool suit trunks hole cap area; shopping: cart bag mall center centre basket trolley area "
    "district; washing: machine station basin; sewing: machine kit; ironing: board; sleeping: bag mat; watering: hole "
    "can hose; skiing: gear slope equipment outfit suit goggles poles area trail lesson gloves course; racing: car "
    "bike track suit horse uniform boat; riding: gear helmet boots lesson outfit ring crop; fishing: boat pole rod "
    "net line gear village pier; sailing: boat ship vessel; rocking: chair horse; folding: chair table; waiting: room "
    "area; sitting: room area; dressing: room table gown; bowling: alley ball pin; boxing: ring glove match; running: "
    "shoe track; hiking: trail boot path; walking: stick path trail cane; serving: tray dish plate spoon bowl table "
    "line platter; drinking: glass glasses fountain cup water; mixing: bowl; measuring: cup tape spoon; carving: "
    "knife; landing: gear strip pad; loading: dock truck zone; wedding: cake dress party ring; batting: cage helmet "
    "gloves practice; surfing: board gear competition; reading: glasses lamp room; vending: machine; chewing: gum; "
    "rolling: pin; hanging: basket plant lamp light planter; changing: table room; diving: board suit; wrapping: "
    "paper; whipping: cream; crossing: sign light signal guard; boarding: gate pass school area ramp; meeting: room "
    "hall; training: wheels camp; grazing: land field; stepping: stone; lighting: fixture; building: block; playing: "
    "field card court; tasting: room menu; weighing: scale; writing: desk table; knitting: needle; skating: rink ramp "
    "park; skateboarding: park ramp competition; camping: site tent chair gear; farming: equipment; "
    "steering: wheel; punching: bag; measuring: stick; shaving: cream kit; climbing: wall rope; petting: zoo"
)
# Before a noun without a determiner these describe it ("smiling woman"); other -ing words govern it.
ING_ADJECTIVES = _words(
    "smiling sleeping laughing crying running flying floating growing burning glowing shining flowing matching "
    "rolling surrounding interesting amazing stunning charming exciting crashing setting rising breaking missing "
    "existing oncoming upcoming ongoing remaining towering blooming flowering blossoming swirling sparkling winding "
    "wandering looking working falling melting steaming boiling leading neighboring outstanding relaxing boring "
    "living"
)

# Persons and animals, which do what the verb after them says ("a dog noses in").
ANIMATE = _words(
    "man men woman women person people boy boys girl girls child children kid kids baby babies toddler toddlers guy "
    "guys lady ladies gentleman gentlemen adult adults teenager teenagers teen teens youth couple family families "
    "crowd team crew player players rider riders skier skiers surfer surfers skater skaters skateboarder "
    "skateboarders snowboarder snowboarders biker bikers bicyclist bicyclists cyclist cyclists motorcyclist driver "
    "drivers pilot batter pitcher catcher umpire officer officers policeman policemen police soldier soldiers "
    "worker workers firefighter firefighters fireman firemen chef chefs cook cooks waiter waitress farmer fisherman "
    "tourist tourists pedestrian pedestrians passenger passengers student students teacher doctor nurse bride groom "
    "mother father mom dad son daughter brother sister friend friends boyfriend girlfriend husband wife parent "
    "parents grandmother dog dogs cat cats kitten kittens puppy puppies horse horses cow cows bull bulls sheep goat "
    "goats pig pigs elephant elephants giraffe giraffes zebra zebras bear bears monkey monkeys lion lions tiger "
    "tigers bird birds duck ducks goose geese swan swans seagull seagulls pigeon pigeons owl penguin eagle parrot "
    "fish lamb lambs calf animal animals athlete athletes musician musicians dancer dancers artist singer actor "
    "actress model clown jockey cowboy businessman businesswoman hiker hikers swimmer runner runners goalie vendor "
    "customer customers shopper somebody someone everyone he she they who cattle deer rabbit squirrel dolphin whale "
    "turtle camel camels"
)
# Take a verb in the plural although they are singular ("a couple walk").
COLLECTIVES = _words("sheep deer fish elk couple family crowd team crew group herd flock police pair bunch class band")
# Plurals without -s, and words that only have a plural.
PLURALS = _words(
    "people men women children police cattle feet teeth geese mice lives wives knives leaves wolves loaves shelves "
    "scissors pants jeans shorts glasses goggles clothes stairs headphones sunglasses folks oxen calves halves"
)
# Words in -s that are nouns of their own, though the tables list the same word without it.
PLURAL_NOUNS = _words(
    "pants jeans shorts glasses goggles clothes stairs headphones sunglasses goods news gas lens species series bus "
    "trousers tights overalls tongs pliers tweezers binoculars chaps barracks headquarters athletics gymnastics "
    "mathematics physics pajamas canvas christmas atlas chess dress brass molasses earmuffs suspenders crossroads "
    "kudos cosmos alas asparagus hummus cheers bowels"
)
# Plurals that come before another noun ("a sports car").
PLURAL_MODIFIERS = _words(
    "sports glasses clothes goods arms games savings news athletics electronics sales ladies mens womens men women "
    "kids baseballs scissors pants stairs"
)

# Verbs that captions use as verbs right after their subject.
STRONG_VERBS = _words(
    "sit stand walk ride hold look eat run jump wear talk drive swim wait lie lay sleep graze carry pull push kick "
    "hit throw catch hang lean pose smile stare gaze perform prepare make take get give go come move travel pass "
    "cross climb fall slide drink read write contain grow gather overlook enter leave reach use try attempt help "
    "feed sell buy touch kiss hug float peer perch sing laugh celebrate enjoy share relax chase bite lick sniff "
    "chew bend crouch kneel squat toss dive play swing fly watch rest feature show display serve cut stop speak "
    "listen wave stretch seem appear hover sail follow include begin continue keep put set let be have do cover "
    "fill surround surf ski skate skateboard snowboard race bat cook bake wash brush compete attend admire examine "
    "inspect observe operate practice pretend receive roam sip soar steer stroll strike tackle wander work board "
    "browse burn cast chat cheer dance dig drag fix fold gesture glide grab grind hike hop lift load lounge march "
    "meet nap nurse paddle paint park pay pet pick point pour protect raise repair return row scoop shake shine "
    "shoot spray spread stack study sweep tend tie tow turn twist view visit wade yawn land leap lead line approach "
    "face block reflect say tell want need like love"
)
# Nouns after "to", although they are verbs too ("walks to school").
LIKELY_TO_NOUNS = _words("bed shore school work church dinner lunch breakfast town sea home traffic music water camera")
# Verb and particle that make one modifier before these nouns: "a pick up truck".
PARTICLE_COMPOUNDS = {
    ("pick", "up"): _words("truck trucks"),
    ("walk", "in"): _words("shower closet tub freezer cooler fridge refrigerator"),
    ("see", "through"): _words("glass shower door window curtain container umbrella bag top"),
    ("pull", "out"): _words("bed couch sofa drawer shelf"),
    ("drive", "in"): _words("movie theater restaurant"),
    ("close", "up"): _words("picture photo photograph view shot image pictures photos"),
}
PARTICLES = _words("up down over back on in")
# Words that make a following "to" a preposition ("next to", "tied to").
BEFORE_TO = _words(
    "next close attached tied connected listening adjacent similar according due belonging talking speaking up down "
    "over back on in opposite nearest leading pointing compared hooked hitched strapped added chained thanks face "
    "listens listen talk talks speak speaks side clinging nearer closer closest prior near opposed related leads "
    "addition parallel fastened glued taped pinned leashed"
)

# ---------------------------------------------------------------- nouns that make no concept

# "A group of people" is about people.
PARTITIVES = _words(
    "group pair couple bunch slice piece number lot variety row herd flock set pile stack bit kind type sort array "
    "assortment collection dozen handful line series selection amount plenty half part portion section load mixture "
    "cluster bundle heap mound range majority rest quantity ton mass mix trio sheet swarm pack school string batch "
    "body wedge chunk patch stretch bite sip style host multitude hundred thousand combination"
)
# Partitives that name nothing without an "of" either ("a variety").
QUANTITY_NOUNS = _words(
    "lot plenty number variety bit kind type sort amount dozen handful majority quantity ton series"
)
# "In front of a car", "in the background".
RELATIONAL = _words(
    "front top back side middle center centre background foreground bottom edge left right corner inside outside "
    "end distance rear next midst vicinity surroundings opposite underside upside area spot place location setting "
    "position direction part section beginning interior exterior backdrop foot height reach sight mid way other tip "
    "portion half rest forefront outskirts perimeter border surface level"
)
# Compounds of a relational, partitive, image or time word that name a thing all the same.
LEXICAL_HEADS = _phrases(
    "tank top, crop top, table top, counter top, halter top, roof top, hill top, mountain top, sweat top, bikini "
    "top, picture frame, view finder, side walk, night stand, hair piece, mantle piece, chess piece, train set, tea "
    "set, tv set, television set, drum set, swing set, chess set, fanny pack, ice pack, back pack, clothes line, "
    "power line, x ray, rest area, tool set, finish line, power lines, sand pile, wood pile, head piece, center "
    "piece, rag top, box top, stove top, cook top, treetop, lap top, hay stack, smoke stack, bed sheet, cookie "
    "sheet, baking sheet, high school, cheese slice, pizza slice, lemon slice, cake slice, orange slice, apple "
    "slice, bread slice, tomato slice, parking lot, remote control, bus line, railroad line, train line, subway "
    "line, hay bundle, six pack, band aid, fire place"
)
# Words for the image itself; the first set only before "of" ("a drawing of a cat").
IMAGE_WORDS_WITH_OF = _words("drawing sketch depiction artwork animation")
IMAGE_WORDS = _words(
    "picture photo photograph image view shot closeup close-up close snapshot photography illustration vector scene "
    "pic screenshot pictures photos depiction portrait rendering clipart footage thumbnail version portraiture "
    "shoot photoshoot up"
)
TIME_WORDS = _words(
    "day night morning evening afternoon time summer winter fall autumn spring year moment season week month "
    "weekend today tonight tomorrow yesterday dawn dusk noon midnight midday daytime nighttime daylight nightfall "
    "hour minute second century decade era date period age monday tuesday wednesday thursday friday saturday sunday "
    "january february april june july august september october november december holiday halloween easter "
    "anniversary sundown"
)
ABSTRACT = _words(
    "way attempt process style color colour shape kind idea fun love life use action trick manner mode form fashion "
    "variety thing stuff item object motion movement activity preparation display conversation discussion work job "
    "turn look pose attention effort purpose reason result fact information name word help order addition matter "
    "chance choice condition quality quantity theme design pattern effect feature detail length width size weight "
    "speed power force energy danger safety peace joy happiness fear anger beauty luck success failure progress "
    "progression formation position stance posture balance gesture contact touch sense feeling emotion mood thought "
    "memory dream hope wish need want desire interest experience adventure journey trip travel visit stay stop ride "
    "walk run jump fly swim throw catch hit kick swing move start finish begin stage state status event occasion "
    "celebration competition contest tournament practice training lesson session performance play music sound noise "
    "voice song silence dark darkness lack difference similarity relationship construction renovation repair "
    "maintenance remodeling remodel advantage access ability knowledge skill technique method system technology "
    "science history culture tradition religion business industry economy politics law education sport sports "
    "transportation midair mid-air air-time total sum lots many few several something anything nothing everything "
    "someone anyone everyone one ones other others another each all both none some any self left-hand right-hand "
    "unison background rest middle inside outside front nap snooze rotation usage unwrapping efficiency "
    "arrangement-wise setup layout variation version example sample concept subject topic point content everyone's "
    "anyone's accordance regards respect regard favor favour aid return search hurry rush haste midst motorcycling "
    "bicycling skateboarding snowboarding surfing skiing skating swimming riding walking running eating drinking "
    "cooking playing sleeping sitting standing waiting talking looking working reading writing shopping flying "
    "racing driving jumping cycling fishing sailing hiking camping dancing singing parking boarding traveling "
    "posing space air distance mile foot-long inch lb kg km cm mm ft pm am etc vs tech maneuver manoeuvre stunt "
    "serve flip break go see wear wait hold st ave blvd rd nd th arrangement humor humour company leisure pleasure "
    "entertainment recreation relaxation consumption exercise service purchase sale arrival departure flight "
    "takeoff take-off approach descent ascent completion anticipation concentration focus reach control charge care "
    "command disarray disrepair storage transit transport route direction appearance presence existence absence "
    "surprise mystery secret question answer problem solution"
)

# Adjective + noun pairs that name a thing of their own; spaCy calls them no compound.
LEXICAL_PAIRS = _phrases(
    "hot dog, teddy bear, polar bear, grizzly bear, high chair, french fry, stuffed animal, bald eagle, potted "
    "plant, stainless steel, remote control, green bean, solar panel, electric guitar, mobile phone, hard drive, "
    "orange juice, sweet potato, hot tub, hot air, hot chocolate, big ben, mobile home, electrical outlet, wild "
    "animal, wild flower, convertible car, flip flop, double decker, cell phone, flat screen, one way, cross "
    "country, rear view, high rise, take out, mini van, fast food, touch screen, back yard, front yard, cream "
    "cheese, gold medal, sound board"
)
# Pairs whose head alone would be another thing: a hot dog is no dog.
EXOCENTRIC_PAIRS = _phrases(
    "big ben, hot dog, teddy bear, french fry, stuffed animal, stainless steel, flip flop, ice cream"
)

# Before "glasses", these make them no eyewear, mostly drinking glasses.
DRINKS = _words(
    "wine water beer champagne drinking shot martini cocktail juice milk tall empty drink whiskey crystal pint stem "
    "beverage plastic margarita tea hour hand"
)

# Function words that tell other languages in Latin script from English.
FOREIGN_WORDS = _words(
    "der das und mit ein eine einen auf ist nicht im den dem le les une dans est avec sur du des aux et un el los "
    "las una con por para del y en es il gli che di della nel per sono uma com na não do da dos het een van op met "
    "zijn och på med som ett w z się jest dan yang dengan"
)
ENGLISH_WORDS = _words(
    "a an the of in on with and is are at to for by from next his her its two three some near while that it has"
)
