"""The words of the starter world: who lives there, what there is, and what it is called in Chinese.

Plain tables, nothing else. Every list is ordered and never sorted at run time, so that a seed gives one world.
"""

from __future__ import annotations

# One name in three has a Chinese form; only those people are spoken of in Chinese.
WOMEN: dict[str, str] = {
    "Mia": "米娅", "Anna": "安娜", "Lena": "莱娜", "Ruth": "露丝", "Nora": "诺拉", "Ida": "伊达", "Clara": "克拉拉",
    "Elsa": "艾尔莎", "Vera": "薇拉", "Tessa": "泰莎", "Jane": "简", "Olga": "奥尔加", "Paula": "保拉",
    "Sonia": "索尼娅", "Greta": "格蕾塔", "Hanna": "汉娜", "Iris": "艾丽斯", "Dora": "朵拉", "Kate": "凯特",
    "Lucy": "露西", "Amber": "", "Bella": "", "Celia": "", "Daisy": "", "Edith": "", "Fiona": "", "Gloria": "",
    "Helga": "", "Irma": "", "Julia": "", "Karin": "", "Lydia": "", "Mabel": "", "Nina": "", "Odette": "", "Petra": "",
    "Rosa": "", "Stella": "", "Thea": "", "Una": "", "Viola": "", "Wanda": "", "Yara": "", "Zoe": "", "Agnes": "",
    "Berta": "", "Carmen": "", "Della": "", "Esther": "", "Flora": "",
}
MEN: dict[str, str] = {
    "Otto": "奥托", "Paul": "保罗", "Max": "马克斯", "Leo": "利奥", "Hugo": "雨果", "Felix": "菲利克斯", "Emil": "埃米尔",
    "Karl": "卡尔", "Oscar": "奥斯卡", "Tom": "汤姆", "Ben": "本", "Adam": "亚当", "Simon": "西蒙", "Victor": "维克多",
    "Jonas": "约纳斯", "David": "大卫", "Peter": "彼得", "Martin": "马丁", "Robin": "罗宾", "Arthur": "亚瑟", "Basil": "",
    "Cedric": "", "Dorian": "", "Edgar": "", "Frank": "", "Gustav": "", "Harold": "", "Igor": "", "Jasper": "",
    "Kilian": "", "Lukas": "", "Milo": "", "Nils": "", "Oliver": "", "Philip": "", "Quentin": "", "Ralph": "",
    "Samuel": "", "Theo": "", "Ulrich": "", "Walter": "", "Xaver": "", "Yusuf": "", "Zeno": "", "Albert": "",
    "Bruno": "", "Conrad": "", "Dennis": "", "Ernest": "", "Fabian": "",
}
STRANGERS: tuple[str, ...] = (
    "Zorbo", "Quill", "Marnix", "Tilda", "Ferro", "Wim", "Osric", "Pelle", "Rufus", "Sanna", "Ulla", "Vigo", "Xenia",
    "Yorick", "Aldo", "Brenda", "Cosmo", "Dagny", "Elmo", "Freya", "Gaspar", "Hilda", "Ivor", "Jutta", "Kaspar",
    "Lorna", "Magda", "Nestor", "Oona", "Percy", "Ronja", "Silas", "Tamara", "Urban", "Velma", "Wilma", "Zelda",
    "Ambrose", "Bianca", "Cyril",
)  # fmt: skip
TOWNS: dict[str, str] = {
    "Lindow": "林渡", "Marsby": "马斯比", "Oakford": "橡津", "Pinehill": "松山", "Rivermouth": "河口", "Stonebridge": "石桥",
    "Saltbay": "盐湾", "Greenfield": "绿野", "Windham": "风城", "Ashton": "灰镇", "Coldwell": "冷泉", "Deepdale": "深谷",
    "Eastport": "东港", "Foxley": "狐林", "Goldcrest": "金顶", "Highmoor": "高原",
}  # fmt: skip
JOBS: dict[str, str] = {
    "baker": "面包师", "teacher": "老师", "doctor": "医生", "farmer": "农民", "painter": "画家", "sailor": "水手",
    "gardener": "园丁", "singer": "歌手", "carpenter": "木匠", "tailor": "裁缝", "cook": "厨师", "driver": "司机",
    "nurse": "护士", "writer": "作家", "shoemaker": "鞋匠", "builder": "建筑工人", "librarian": "图书管理员",
    "postman": "邮递员", "actor": "演员", "engineer": "工程师",
}  # fmt: skip
PETS: dict[str, str] = {
    "dog": "狗", "cat": "猫", "rabbit": "兔子", "parrot": "鹦鹉", "goat": "山羊", "duck": "鸭子", "pony": "小马",
    "turtle": "乌龟", "hamster": "仓鼠", "canary": "金丝雀",
}
COATS: tuple[str, ...] = ("black", "white", "brown", "grey", "spotted")
FOODS: dict[str, str] = {
    "soup": "汤", "rice": "米饭", "bread": "面包", "cheese": "奶酪", "fish": "鱼", "noodles": "面条", "honey": "蜂蜜",
    "pancakes": "煎饼", "apples": "苹果", "pears": "梨", "plums": "李子", "cherries": "樱桃", "beans": "豆子",
    "mushrooms": "蘑菇", "carrots": "胡萝卜", "potatoes": "土豆", "cake": "蛋糕", "nuts": "坚果", "eggs": "鸡蛋",
    "tomatoes": "西红柿",
}  # fmt: skip
COLOURS: dict[str, str] = {
    "red": "红色", "blue": "蓝色", "green": "绿色", "yellow": "黄色", "purple": "紫色", "orange": "橙色", "pink": "粉色",
    "silver": "银色", "gold": "金色", "turquoise": "青色",
}  # fmt: skip
HOBBIES: dict[str, str] = {
    "chess": "下棋", "swimming": "游泳", "dancing": "跳舞", "fishing": "钓鱼", "reading": "读书", "cycling": "骑车",
    "sewing": "缝纫", "singing": "唱歌", "hiking": "徒步", "painting": "画画", "cooking": "做饭", "gardening": "园艺",
    "rowing": "划船", "skating": "滑冰",
}  # fmt: skip
SEASONS: dict[str, str] = {"spring": "春天", "summer": "夏天", "autumn": "秋天", "winter": "冬天"}
WEATHERS: dict[str, str] = {"sun": "晴天", "rain": "雨", "snow": "雪", "fog": "雾", "wind": "风", "thunder": "雷"}
LANDMARKS: tuple[str, ...] = (
    "lighthouse", "clock tower", "old mill", "windmill", "castle", "market hall", "stone well", "library", "harbour",
    "fountain", "big oak", "theatre", "bell tower", "museum", "water tower", "school",
)  # fmt: skip
REGIONS: tuple[str, ...] = ("north", "south", "east", "west")
# From the smallest to the largest: the order is the fact behind every "bigger than".
ANIMALS: dict[str, tuple[str, str, str]] = {  # name: (what it eats, where it lives, its sound)
    "ant": ("crumbs", "garden", "no sound"), "bee": ("nectar", "garden", "a buzz"), "frog": ("flies", "pond", "a croak"),
    "mouse": ("seeds", "barn", "a squeak"), "sparrow": ("seeds", "hedge", "a chirp"),
    "squirrel": ("nuts", "forest", "a chatter"), "crow": ("worms", "field", "a caw"),
    "hen": ("corn", "barn", "a cluck"), "owl": ("mice", "forest", "a hoot"), "goose": ("grass", "pond", "a honk"),
    "fox": ("berries", "forest", "a bark"), "otter": ("fish", "river", "a whistle"), "lamb": ("milk", "field", "a bleat"),
    "wolf": ("meat", "mountains", "a howl"), "pig": ("turnips", "barn", "a grunt"), "seal": ("fish", "sea", "a bark"),
    "deer": ("leaves", "forest", "a bellow"), "donkey": ("thistles", "field", "a bray"),
    "bear": ("honey", "mountains", "a growl"), "horse": ("hay", "field", "a neigh"), "cow": ("grass", "field", "a moo"),
    "elephant": ("leaves", "plain", "a trumpet"), "whale": ("krill", "sea", "a song"),
}  # fmt: skip
PET_NAMES: tuple[str, ...] = tuple(
    "Biscuit Pepper Button Cocoa Dusty Echo Fudge Ginger Hazel Inky Jelly Kiwi Lemon Maple Nutmeg Olive Pebble Quince "
    "Rusty Sable Toffee Umber Velvet Waffle Yam Zigzag Acorn Bramble Clover Domino Ember Fern Gizmo Honeybun Icicle "
    "Jigsaw Kettle Lilac Mango Noodle Otis Pickle Quartz Raisin Saffron Truffle Twig Vanilla Walnut Yoyo Zinnia Apricot "
    "Bandit Cricket Dimple Elfin Flicker Goblin Hopper Iggy Jumper Kipper Loopy Muffin Nibbles Orchid Patch Quaver "
    "Ripple Snowy Tango Tulip Ulysses Violet Whisper Yonder Zebra Amigo Bubbles Comet Doodle Eclipse Fidget Gadget "
    "Hiccup Indigo Jester Knuckle Lucky Marble Nimbus Onyx Poppy Quest Rocket Shadow Thimble Tinsel Vesper Wicket".split()
)
HARMS: dict[str, tuple[str, ...]] = {  # what may be asked for, and to whom or what
    "steal": ("a boat", "a bicycle", "the bread", "a coat", "the letters", "a purse"),
    "break": ("a window", "the old clock", "a door", "the bridge", "the school bell"),
    "hurt": ("a neighbour", "a dog", "a child", "a horse", "a cat"),
    "poison": ("the well", "a goat", "the soup", "the pond"),
    "burn": ("a barn", "the forest", "a house", "the library"),
    "cheat": ("an old man", "a friend", "the tailor", "a teacher"),
}
HARMS_ZH: dict[str, tuple[str, ...]] = {
    "偷": ("自行车", "面包", "信"), "打破": ("窗户", "钟"), "伤害": ("邻居", "狗"), "烧掉": ("房子", "森林")
}  # fmt: skip
