"""Common English words to spell; lower case, letters only."""

_TEXT = """
able about above across action after again agree album almost alone along always amount
anchor animal answer apple april apron area arrow artist autumn award baby balance balloon
banana barrel basket beach bean beauty become before begin behind believe bench berry better
bicycle bird bitter blanket blossom boat book border borrow bottle bottom branch bread bridge
bright bring brother bucket build butter button cabbage camera candle captain carpet carrot
castle cattle celery center chain chair cheese cherry chicken child church circle city clean
clever climb clock cloud coffee collar color comb common cook copper corner cotton cousin
cover cream cricket crowd cucumber curtain cushion dance danger daughter dear decide deer
desert dinner doctor dollar door double dragon drawer dream dress drink early earth eleven
empty engine enough evening every family farmer father feather fellow fence field finger
finish fish flower follow forest fork forty freedom friend fruit funny garden garlic gather
gentle ginger giraffe glass goose grass green grocery guess guitar hammer handle happen happy
harbor harvest heavy hello helmet hidden hill history hollow honey horse hotel house hundred
hungry hurry island jacket jelly jewel journey juice jungle kettle kitchen kitten ladder
ladle lemon lesson letter library lion listen little lobster lucky machine market marry
matter meadow mellow member merry middle minute mirror missing money monkey morning mother
mountain muffin music narrow needle noodle north number ocean offer office onion orange
orchard oven owner oyster paddle pancake paper parrot pattern peace pebble pencil pepper
piano pickle picture pillow planet pocket potato power pretty price puddle pumpkin puppy
purple puzzle quarter question quick quiet rabbit raccoon railroad rain raspberry reader
ribbon river rocket roof rubber saddle sailor salad school season seven shadow sheep shell
shoulder silver simple sister sleep slipper smooth soccer spider spoon spring squirrel
station stocking stone story stranger strawberry street strong sudden sugar summer sunny
supper surprise sweet table teacher terrible thunder ticket tiger timber tomato tomorrow
tower traffic travel tree tunnel turtle umbrella uncle under upper valley village violin
visitor voyage wagon walnut water weather wedding wheel whisper window winter wisdom wonder
wood worker worry yellow yesterday young zebra
"""
WORDS = tuple(_TEXT.split())
