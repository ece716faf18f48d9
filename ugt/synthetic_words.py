"""The words of the generated catalogue: styles with their genres and title words, and the names of people by country."""

from __future__ import annotations

# style -> (genres, adjectives, nouns, places or people, keywords)
STYLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "noir": (
        ("Crime", "Film-Noir", "Drama"),
        ("Crooked", "Silent", "Midnight", "Cold", "Double", "Borrowed", "Guilty", "Rain-Soaked", "Fatal", "Blind"),
        ("Alibi", "Witness", "Alley", "Verdict", "Confession", "Ransom", "Informer", "Cigarette", "Wager", "Corridor"),
        ("Bunker Hill", "the Waterfront", "Lombard Street", "Union Station", "Cannery Row", "Pier 19"),
        ("detective", "femme fatale", "murder", "blackmail"),
    ),
    "space": (
        ("Adventure", "Sci-Fi", "Action"),
        ("Distant", "Quantum", "Stellar", "Frozen", "Forgotten", "Infinite", "Hollow", "Orbital", "Last", "Crimson"),
        ("Orbit", "Colony", "Signal", "Horizon", "Beacon", "Armada", "Nebula", "Vanguard", "Airlock", "Exodus"),
        ("Europa", "Titan", "Kepler 9", "the Andromeda Gate", "Ceres", "Proxima"),
        ("space travel", "aliens", "starship", "first contact"),
    ),
    "romcom": (
        ("Comedy", "Romance"),
        ("Accidental", "Perfect", "Second", "Sunday", "Awkward", "Sweet", "Almost", "Reluctant", "Unexpected", "Honest"),
        ("Bridesmaid", "Date", "Proposal", "Neighbor", "Bouquet", "Engagement", "Crush", "Roommate", "Vow", "Kiss"),
        ("Brooklyn", "Notting Hill", "Santa Barbara", "Lake Como", "Savannah", "Portland"),
        ("wedding", "love triangle", "opposites attract", "dating"),
    ),
    "horror": (
        ("Horror", "Mystery", "Thriller"),
        ("Hollow", "Whispering", "Buried", "Pale", "Unholy", "Screaming", "Rotten", "Sleepless", "Bleeding", "Haunted"),
        ("Cellar", "Orchard", "Effigy", "Crawlspace", "Lullaby", "Asylum", "Séance", "Harvest", "Marionette", "Grave"),
        ("Blackwood", "Hemlock Hill", "Ward 13", "Ashgrove", "Mill Creek", "Saint Orla"),
        ("haunted house", "possession", "slasher", "supernatural"),
    ),
    "western": (
        ("Western", "Action"),
        ("Dusty", "Lonesome", "Iron", "Burning", "Wild", "Broken", "Copper", "Outlaw", "Restless", "Bitter"),
        ("Saddle", "Canyon", "Sheriff", "Stagecoach", "Spur", "Ranch", "Revolver", "Bounty", "Trail", "Mustang"),
        ("Abilene", "Red Mesa", "Cheyenne", "Durango", "Dry Creek", "Silver Gulch"),
        ("gunfight", "outlaw", "frontier", "revenge"),
    ),
    "war": (
        ("Drama", "War", "History"),
        ("Last", "Forgotten", "Muddy", "Broken", "Distant", "Silent", "Brave", "Winter", "Scarred", "Northern"),
        ("Regiment", "Bridge", "Trench", "Convoy", "Armistice", "Letter", "Beachhead", "Siege", "Corporal", "Ration"),
        ("Arnhem", "Tobruk", "the Ardennes", "Monte Cassino", "Gdynia", "Salerno"),
        ("world war two", "soldiers", "resistance", "based on a true story"),
    ),
    "family": (
        ("Animation", "Adventure", "Family"),
        ("Little", "Magic", "Brave", "Sleepy", "Flying", "Tiny", "Curious", "Golden", "Runaway", "Giggling"),
        ("Dragon", "Penguin", "Balloon", "Teapot", "Fox", "Lighthouse", "Hedgehog", "Pirate", "Snowman", "Comet"),
        ("Bumblebrook", "the Candy Coast", "Acorn Valley", "Moonberry", "Tumbledown", "Puddle Lane"),
        ("talking animals", "friendship", "musical numbers", "for children"),
    ),
    "heist": (
        ("Action", "Crime", "Thriller"),
        ("Golden", "Clean", "Final", "Loaded", "Quick", "Marked", "Platinum", "Double", "Midnight", "Perfect"),
        ("Vault", "Getaway", "Score", "Shuffle", "Crew", "Diamond", "Decoy", "Blueprint", "Ledger", "Payday"),
        ("Monaco", "Las Vegas", "Macau", "Marseille", "Zurich", "Antwerp"),
        ("heist", "robbery", "con artist", "car chase"),
    ),
    "biography": (
        ("Biography", "Drama", "History"),
        ("Restless", "Unfinished", "Stubborn", "Quiet", "Radiant", "Reluctant", "Divided", "Gifted", "Unlikely", "Private"),
        ("Genius", "Portrait", "Senator", "Composer", "Exile", "Inventor", "Queen", "Physician", "Crown", "Manuscript"),
        ("Vienna", "Princeton", "Kraków", "Bombay", "Whitehall", "Lisbon"),
        ("biopic", "politics", "artist", "based on a true story"),
    ),
    "documentary": (
        ("Documentary",),
        ("Inside", "Beyond", "Under", "Saving", "Mapping", "Counting", "Listening to", "Chasing", "Remembering", "Feeding"),
        ("the Reef", "the Glacier", "the Factory", "the Monsoon", "the Choir", "the Harvest", "the Archive", "the Wolves", "the Delta", "the City"),
        ("Svalbard", "Lake Baikal", "Detroit", "the Sahel", "Patagonia", "Okinawa"),
        ("nature", "interviews", "climate", "archive footage"),
    ),
    "fantasy": (
        ("Action", "Adventure", "Fantasy"),
        ("Shattered", "Eternal", "Ashen", "Hidden", "Silver", "Cursed", "Rising", "Elder", "Thorned", "Moonlit"),
        ("Throne", "Sword", "Kingdom", "Prophecy", "Chalice", "Raven", "Citadel", "Warden", "Oath", "Rune"),
        ("Eldermoor", "Vaelin", "the Ninth Gate", "Thornhold", "Isenfell", "Karhollow"),
        ("magic", "dragon", "quest", "sword and sorcery"),
    ),
    "musical": (
        ("Comedy", "Music", "Musical"),
        ("Dancing", "Golden", "Electric", "Swinging", "Velvet", "Blue", "Jazz-Age", "Singing", "Glittering", "Rhythm"),
        ("Chorus", "Ballroom", "Melody", "Trumpet", "Encore", "Spotlight", "Tango", "Orchestra", "Serenade", "Overture"),
        ("Broadway", "Harlem", "Havana", "Montmartre", "Tin Pan Alley", "the Savoy"),
        ("dancing", "backstage", "songs", "show business"),
    ),
    "spy": (
        ("Action", "Mystery", "Thriller"),
        ("Burned", "Covert", "Hidden", "Northern", "Double", "Ghost", "Second", "Shadow", "Cold", "Silent"),
        ("Protocol", "Cipher", "Dossier", "Handler", "Asset", "Defector", "Embassy", "Courier", "Microfilm", "Directive"),
        ("Berlin", "Istanbul", "Prague", "Tangier", "Helsinki", "Beirut"),
        ("spy", "cold war", "assassin", "double agent"),
    ),
    "teen": (
        ("Comedy", "Drama"),
        ("Awkward", "Last", "Lost", "Summer", "Loud", "Invisible", "Senior", "Restless", "Backseat", "Borrowed"),
        ("Locker", "Prom", "Freshman", "Mixtape", "Yearbook", "Sleepover", "Skatepark", "Detention", "Curfew", "Bleachers"),
        ("Maple High", "Ridgemont", "Oakdale", "Lakeview", "Fairfax", "Pine Street"),
        ("high school", "coming of age", "friendship", "summer"),
    ),
    "sport": (
        ("Drama", "Sport"),
        ("Underdog", "Final", "Golden", "Hard", "Long", "Fearless", "Southpaw", "Winning", "Home", "Broken"),
        ("Round", "Season", "Coach", "Whistle", "Marathon", "Champion", "Rookie", "Overtime", "Penalty", "Gloves"),
        ("Pittsburgh", "Wembley", "Turin", "Green Bay", "Havana", "Glasgow"),
        ("boxing", "football", "underdog", "training montage"),
    ),
    "melodrama": (
        ("Drama", "Romance"),
        ("Fading", "Tender", "Forbidden", "Autumn", "Faithful", "Lonely", "Stolen", "Distant", "Gentle", "Unspoken"),
        ("Letters", "Garden", "Promise", "Daughter", "Widow", "Season", "Tide", "Farewell", "Piano", "Orchard"),
        ("Provence", "Cornwall", "Kyoto", "Charleston", "Buenos Aires", "Trieste"),
        ("love", "family secrets", "tearjerker", "marriage"),
    ),
}
ERAS: tuple[tuple[int, int], ...] = ((1936, 1958), (1959, 1977), (1978, 1996), (1997, 2014))
SUBTITLES = ("The Reckoning", "Homecoming", "The Return", "Aftermath", "Origins", "The Long Night", "Redemption", "The Final Chapter")

# country -> (first names, family names); accents are on purpose
PEOPLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "US": (
        (
            "James",
            "Ruth",
            "Walter",
            "Denise",
            "Marcus",
            "Helen",
            "Frank",
            "Alice",
            "Leon",
            "Grace",
            "Tyler",
            "Nora",
            "Howard",
            "Vivian",
            "Dale",
            "Carla",
            "Owen",
            "Judith",
        ),
        (
            "Whitaker",
            "Delaney",
            "Brooks",
            "Harmon",
            "Castellano",
            "Mercer",
            "Holloway",
            "Pruitt",
            "Lindqvist",
            "O'Hara",
            "Barlow",
            "Fontaine",
            "Reyes",
            "Stroud",
            "Kessler",
            "Vance",
            "Abbott",
            "Tillman",
        ),
    ),
    "GB": (
        ("Alistair", "Imogen", "Rupert", "Fiona", "Nigel", "Harriet", "Callum", "Beatrice", "Graham", "Maeve", "Simon", "Tamsin"),
        ("Ashworth", "Pemberton", "Fairclough", "MacLeod", "Hargreaves", "Trevelyan", "Whitcombe", "Bannerman", "Llewellyn", "Sedgwick"),
    ),
    "FR": (
        ("Étienne", "Amélie", "François", "Océane", "Gérard", "Hélène", "Loïc", "Mathilde", "René", "Sylvie"),
        ("Lefèvre", "Dubois", "Béranger", "Moreau", "Chéreau", "Garnier", "Besançon", "Vasseur", "Lacroix", "d'Aubigné"),
    ),
    "DE": (
        ("Jürgen", "Käthe", "Matthias", "Renate", "Günther", "Anneliese", "Sönke", "Ulrike"),
        ("Müller-Brandt", "Schäfer", "Voß", "Krämer", "Lindner", "Grünwald", "Hartmann", "Böhm"),
    ),
    "ES": (
        ("Joaquín", "Inés", "Álvaro", "Lucía", "Íñigo", "Maribel", "Andrés", "Begoña"),
        ("Núñez", "Ibáñez", "Carrasco", "Peñalver", "Ortega", "Garmendia", "Solís", "Zamora"),
    ),
    "IT": (
        ("Niccolò", "Chiara", "Massimo", "Giulia", "Renzo", "Ornella", "Dario", "Silvana"),
        ("Bellocchi", "Ferrante", "Salvatori", "De Santis", "Marchetti", "Lombardo", "Rinaldi", "Gattuso"),
    ),
    "JP": (
        ("Haruki", "Setsuko", "Kenji", "Yūko", "Takeshi", "Ayame", "Shōhei", "Michiko"),
        ("Tanizawa", "Ōkubo", "Kurogane", "Hayashida", "Morikawa", "Satō", "Ishiguro", "Fujinami"),
    ),
    "SE": (
        ("Åke", "Ingrid", "Björn", "Liv", "Göran", "Märta", "Nils", "Astrid"),
        ("Sjöberg", "Ekström", "Lundgren", "Åström", "Dahlqvist", "Nyström", "Hallberg", "Wikström"),
    ),
}
# the title in its own language: pattern and words, for countries that don't speak English
NATIVE: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "FR": (
        ("Le dernier", "Un été à", "La nuit de", "L'ombre de", "Les enfants de"),
        ("l'étoile", "la forêt", "minuit", "l'écho", "la mer", "l'hiver"),
        ("Honfleur", "Besançon", "Nîmes"),
    ),
    "DE": (
        ("Die Nacht über", "Der Schatten von", "Jenseits von", "Das Lied über"),
        ("den Flüssen", "Übermorgen", "dem Wald", "der Brücke", "dem Schnee"),
        ("Köln", "Görlitz", "Lübeck"),
    ),
    "ES": (
        ("El último", "La sombra de", "Los hijos de", "La canción de"),
        ("otoño", "la niña", "mañana", "el corazón", "la montaña"),
        ("Cádiz", "León", "Ávila"),
    ),
    "IT": (
        ("L'ultima", "La città di", "Il silenzio di", "I giorni di"),
        ("estate", "mezzanotte", "libertà", "Venerdì", "polvere"),
        ("Forlì", "Cefalù", "Torino"),
    ),
    "JP": (("最後の", "静かな", "遠い", "赤い"), ("夜", "花火", "季節", "手紙", "海", "約束"), ("京都", "函館", "長崎")),
    "SE": (("Den sista", "Bortom", "Sommaren i", "Skuggan av"), ("älven", "skärgården", "vintern", "ängen", "sjön"), ("Malmö", "Umeå", "Gävle")),
}
LANGUAGE = {"US": "en", "GB": "en", "FR": "fr", "DE": "de", "ES": "es", "IT": "it", "JP": "ja", "SE": "sv"}
